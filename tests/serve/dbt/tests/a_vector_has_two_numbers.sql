SELECT id FROM {{ ref('collected') }} WHERE length(v) != 2
