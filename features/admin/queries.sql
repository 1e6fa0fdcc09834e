-- The SQL statements of the routes for operators.

-- name: key_use
-- The last use of API keys, and the cost of their turns from a day on: `listed` is a JSON list of tenants and ids.
SELECT totals.key AS key, max(asked_at) AS last_used_at,
    sum(CASE WHEN day >= :first THEN cost_nusd ELSE 0 END) AS cost_nusd
FROM {lists}(:listed{as_json}) AS written
{join} totals ON tenant = written.value ->> 0 AND dimension = 'key' AND totals.key = written.value ->> 1
GROUP BY totals.key
