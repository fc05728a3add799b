{{ config(materialized='table', order_by='id') }}
SELECT id, caption, CAST([x, y] AS Array(Float32)) AS v FROM {{ ref('said') }} WHERE id <= {{ var('last') }}
