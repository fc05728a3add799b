{{ config(materialized='incremental', order_by='id') }}
SELECT id, v, {{ var('last') }} AS came FROM {{ ref('pictures') }}
{% if is_incremental() %}WHERE id > (SELECT max(id) FROM {{ this }}){% endif %}
