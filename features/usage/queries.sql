-- The SQL statements of usage.

-- name: put_older_cost
-- Notes a turn whose usage and cost an older version has counted.
INSERT INTO older_costs (tenant, asked_at) VALUES (:tenant, :asked_at)
ON CONFLICT (tenant) DO UPDATE SET asked_at = {greatest}(older_costs.asked_at, excluded.asked_at)

-- name: older_cost
-- The last turn of a tenant whose usage and cost an older version has counted.
SELECT asked_at FROM older_costs WHERE tenant = :tenant

-- name: active_sessions
-- The number of sessions that were used since a time.
SELECT count(*) AS sessions FROM sessions WHERE tenant = :tenant AND updated_at > :since

-- name: busy_sessions
-- The sessions that have a running turn.
SELECT DISTINCT session FROM turns
WHERE tenant = :tenant AND outcome = 'running' ORDER BY session LIMIT :limit

-- name: usage_by_day
-- Usage by UTC day.
SELECT key, {sums} FROM totals
WHERE tenant = :tenant AND dimension = 'day' AND key >= :start AND day BETWEEN :first AND :last
GROUP BY key ORDER BY key LIMIT :limit

-- fragment: by_day (sqlite)
-- By the primary key SQLite would read all days.
INDEXED BY totals_by_day

-- fragment: by_day (postgresql)

-- name: usage_since
-- Usage by model from a day on.
SELECT key, {sums} FROM totals {by_day}
WHERE tenant = :tenant AND dimension = 'model' AND day >= :first
GROUP BY key ORDER BY key

-- fragment: recursion_max (sqlite)
-- Ends a recursion with the page. PostgreSQL computes only the rows that are read.
LIMIT :limit

-- fragment: recursion_max (postgresql)

-- fragment: page_of_keys (sqlite)
keys

-- fragment: page_of_keys (postgresql)
(SELECT key FROM keys LIMIT :limit) AS keys

-- name: usage
-- Usage by another dimension. Each next key is the smallest one that follows on any of the days, so that a page costs the
-- same however many keys and days there are besides.
WITH RECURSIVE days (day) AS (
    SELECT :first UNION ALL SELECT day + 1 FROM days WHERE day < :last
), keys (key) AS (
    SELECT (SELECT min((
        SELECT key FROM totals
        WHERE tenant = :tenant AND dimension = :dimension AND totals.day = days.day AND key >= :start
        ORDER BY key LIMIT 1
    )) FROM days)
    UNION ALL
    SELECT (SELECT min((
        SELECT key FROM totals
        WHERE tenant = :tenant AND dimension = :dimension AND totals.day = days.day AND key > keys.key
        ORDER BY key LIMIT 1
    )) FROM days)
    FROM keys WHERE keys.key IS NOT NULL
    {recursion_max}
)
SELECT keys.key, {sums} FROM {page_of_keys}
{join} totals ON totals.tenant = :tenant AND dimension = :dimension AND totals.key = keys.key
    AND day BETWEEN :first AND :last
GROUP BY keys.key ORDER BY keys.key

-- name: billed_usage
-- The usage of each day by model: of the requested ones, of turns to subtract from these, and of the billed ones.
SELECT dimension, key, day, turns, input_tokens, output_tokens, cache_creation_input_tokens, cache_read_input_tokens,
    cost_nusd
FROM totals {by_day}
WHERE tenant = :tenant AND dimension IN ('model', 'moved', 'billed') AND day BETWEEN :first AND :last

-- name: tenants_with_usage
-- Tenants after one of them that have usage.
WITH RECURSIVE found (tenant) AS (
    SELECT (SELECT tenant FROM totals WHERE tenant > :after ORDER BY tenant LIMIT 1)
    UNION ALL
    SELECT (SELECT tenant FROM totals WHERE tenant > found.tenant ORDER BY tenant LIMIT 1)
    FROM found WHERE found.tenant IS NOT NULL
    {recursion_max}
)
SELECT tenant FROM found WHERE tenant IS NOT NULL LIMIT :limit
