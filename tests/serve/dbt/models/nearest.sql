{{ config(materialized='view') }}
SELECT id, caption, L2Distance(v, [1., 0.]) AS distance FROM {{ ref('pictures') }} ORDER BY distance LIMIT 2
