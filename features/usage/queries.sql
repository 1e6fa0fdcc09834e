-- The SQL statements of usage.

-- name: put_older_cost
-- Notes a turn whose usage and cost an older version has counted.
INSERT INTO older_costs (tenant, asked_at) VALUES (:tenant, :asked_at)
ON CONFLICT (tenant) DO UPDATE SET asked_at = {greatest}(older_costs.asked_at, excluded.asked_at)

-- name: older_cost
-- The last turn of a tenant whose usage and cost an older version has counted.
SELECT asked_at FROM older_costs WHERE tenant = :tenant

-- name: active_sessions
-- The number of sessions that were used since a time, of one owner unless it is null.
SELECT count(*) AS sessions FROM sessions
WHERE tenant = :tenant AND updated_at > :since AND (:owner IS NULL OR owner = :owner)

-- name: busy_sessions
-- The sessions that have a running turn, of one owner unless it is null.
SELECT DISTINCT session FROM turns
WHERE tenant = :tenant AND outcome = 'running' AND (:owner IS NULL OR owner = :owner) ORDER BY session LIMIT :limit

-- fragment: day_of_turn
-- The UTC day of a turn in `one`, as text.
date(one.asked_at / 1000000, 'unixepoch')

-- fragment: project_of_turn
-- The project of a turn in `one`, or NULL.
(SELECT project FROM sessions WHERE sessions.tenant = :tenant AND sessions.session = one.session)

-- fragment: keys_of_turn
-- The keys of a turn in `one`, a row of `usage`, by one or two dimensions: '' without a value. No long text is read.
CASE :by WHEN 'day' THEN {day_of_turn} WHEN 'model' THEN one.model WHEN 'key' THEN coalesce(one.asked_by, '')
        WHEN 'session' THEN one.session WHEN 'project' THEN coalesce({project_of_turn}, '')
        ELSE coalesce((
            SELECT value FROM labels WHERE labels.tenant = :tenant AND labels.turn = one.turn AND labels.name = :by
        ), '')
    END AS key,
    CASE :and_by WHEN '' THEN '' WHEN 'day' THEN {day_of_turn} WHEN 'model' THEN one.model
        WHEN 'key' THEN coalesce(one.asked_by, '') WHEN 'session' THEN one.session
        WHEN 'project' THEN coalesce({project_of_turn}, '')
        ELSE coalesce((
            SELECT value FROM labels WHERE labels.tenant = :tenant AND labels.turn = one.turn AND labels.name = :and_by
        ), '')
    END AS and_key

-- fragment: is_selected
-- Whether a turn in `one` is of the days, and fulfils all filters. A filter that is NULL selects all turns.
one.asked_at >= :from_at AND one.asked_at < :before_at
        AND (:model IS NULL OR one.model = :model) AND (:key IS NULL OR one.asked_by = :key)
        AND (:session IS NULL OR one.session = :session) AND (:project IS NULL OR {project_of_turn} = :project)
        AND {has_labels}

-- fragment: summed_turns
-- The sums of turns in `one` by their keys, of which the statement names the source.
WITH found AS (
    SELECT key, and_key, sum(turns) AS turns, sum(messages) AS messages, sum(input_tokens) AS input_tokens,
        sum(output_tokens) AS output_tokens, sum(cache_creation_input_tokens) AS cache_creation_input_tokens,
        sum(cache_read_input_tokens) AS cache_read_input_tokens, sum(cost_nusd) AS cost_nusd, max(asked_at) AS asked_at
    FROM (
        SELECT {keys_of_turn}, 1 AS turns, one.messages, one.input_tokens, one.output_tokens,
            one.cache_creation_input_tokens, one.cache_read_input_tokens, one.cost_nusd, one.asked_at

-- fragment: page_of_sums
-- The page, the sum of all turns that were found, of those with a key, and the total with deleted ones, in one
-- statement, so that no turn ends and none is deleted in between.
    ) AS turn
    GROUP BY key, and_key
)
SELECT 'part' AS kind, page.* FROM (
    SELECT key, and_key, {sums} FROM found WHERE (key, and_key) >= (:start, :and_start)
    GROUP BY key, and_key ORDER BY key, and_key LIMIT :limit
) AS page
UNION ALL
SELECT 'found', '', '', {sums} FROM found
UNION ALL
SELECT 'named', '', '', {sums} FROM found WHERE key <> '' OR and_key <> ''
UNION ALL
SELECT 'total', '', '', {sums} FROM totals
WHERE tenant = :tenant AND dimension = :dimension AND key BETWEEN :name AND :last_name AND +day BETWEEN :first AND :last

-- name: usage_of_days
-- Usage by one or two dimensions, of the turns of some days that fulfil the filters.
{summed_turns} FROM usage AS one WHERE one.tenant = :tenant AND {is_selected}
{page_of_sums}

-- name: usage_of_label
-- The same, by the index of one label. The totals are of the whole tenant: this also reads the turns of one owner.
{summed_turns} FROM labels AS label
        {join} usage AS one ON one.tenant = :tenant AND one.turn = label.turn
        WHERE label.tenant = :tenant AND label.name = :label AND label.value = :value
            AND label.asked_at >= :from_at AND label.asked_at < :before_at AND {is_selected}
{page_of_sums}

-- name: usage_of_session
-- The same, of one session.
{summed_turns} FROM usage AS one WHERE one.tenant = :tenant AND one.session = :session AND {is_selected}
{page_of_sums}

-- name: usage_of_project
-- The same, of the sessions of a project. One that was last used before :since_at has no turn of these days.
{summed_turns} FROM sessions AS of_project
        {join} usage AS one ON one.tenant = :tenant AND one.session = of_project.session
        WHERE of_project.tenant = :tenant AND of_project.project = :project AND of_project.updated_at >= :since_at
            AND {is_selected}
{page_of_sums}

-- name: usage_of_name
-- The totals of one name in a dimension, by UTC day.
SELECT day, turns, messages, input_tokens, output_tokens, cache_creation_input_tokens, cache_read_input_tokens,
    cost_nusd, asked_at AS last_used_at
FROM totals WHERE tenant = :tenant AND dimension = :dimension AND key = :key AND day BETWEEN :first AND :last
ORDER BY day

-- fragment: by_day
-- By the primary key SQLite would read all days.
INDEXED BY totals_by_day

-- fragment: with_total
-- The sum over all turns of the days, in the same statement as its parts, so that no turn ends in between.
UNION ALL
SELECT 'total', '', {sums} FROM totals {by_day}
WHERE tenant = :tenant AND dimension = 'day' AND day BETWEEN :first AND :last

-- name: usage_by_day
-- Usage by UTC day, and the total.
WITH page AS (
    SELECT key, {sums} FROM totals
    WHERE tenant = :tenant AND dimension = 'day' AND key >= :start AND day BETWEEN :first AND :last
    GROUP BY key ORDER BY key LIMIT :limit
)
SELECT 'part' AS kind, page.* FROM page
{with_total}

-- name: usage_since
-- Usage by model from a day on.
SELECT key, {sums} FROM totals {by_day}
WHERE tenant = :tenant AND dimension = 'model' AND day >= :first
GROUP BY key ORDER BY key

-- fragment: recursion_max
-- Ends a recursion with the page, where the database would compute rows that are not read.
LIMIT :limit

-- fragment: page_of_keys
keys

-- name: usage
-- Usage by another dimension, the total, and the sum of all parts of a field of metadata. Each next key is the
-- smallest one that follows on any of the days, so that a page costs the same however many keys and days there are
-- besides.
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
SELECT 'part' AS kind, keys.key AS key, {sums} FROM {page_of_keys}
{join} totals ON totals.tenant = :tenant AND dimension = :dimension AND totals.key = keys.key
    AND day BETWEEN :first AND :last
GROUP BY keys.key
{with_total}
UNION ALL
SELECT 'named', '', coalesce(sum(turns), 0), coalesce(sum(messages), 0), coalesce(sum(input_tokens), 0),
    coalesce(sum(output_tokens), 0), coalesce(sum(cache_creation_input_tokens), 0),
    coalesce(sum(cache_read_input_tokens), 0), coalesce(sum(cost_nusd), 0), NULL
FROM named_totals WHERE tenant = :tenant AND dimension = :dimension AND day BETWEEN :first AND :last

-- name: billed_usage
-- The usage of each day by model: of the requested ones, of turns to subtract from these, and of the billed ones.
SELECT dimension, key, day, turns, input_tokens, output_tokens, cache_creation_input_tokens, cache_read_input_tokens,
    cost_nusd
FROM totals {by_day}
WHERE tenant = :tenant AND dimension IN ('model', 'moved', 'billed') AND day BETWEEN :first AND :last

-- fragment: next_tenants
-- Tenants after one of them that have usage; the last one may be NULL.
WITH RECURSIVE found (tenant) AS (
    SELECT (SELECT tenant FROM totals WHERE tenant > :after ORDER BY tenant LIMIT 1)
    UNION ALL
    SELECT (SELECT tenant FROM totals WHERE tenant > found.tenant ORDER BY tenant LIMIT 1)
    FROM found WHERE found.tenant IS NOT NULL
    {recursion_max}
)

-- name: tenants_with_usage
-- Tenants after one of them that have usage.
{next_tenants}
SELECT tenant FROM found WHERE tenant IS NOT NULL LIMIT :limit

-- fragment: page_of_tenants
found

-- name: usage_by_tenant
-- Usage by tenant, also of tenants without usage on these days.
{next_tenants}
SELECT found.tenant AS key, {sums} FROM {page_of_tenants}
LEFT JOIN totals ON totals.tenant = found.tenant AND dimension = 'day' AND day BETWEEN :first AND :last
WHERE found.tenant IS NOT NULL
GROUP BY found.tenant ORDER BY found.tenant

-- fragment: of_all_tenants
-- All tenants with usage.
WITH RECURSIVE found (tenant) AS (
    SELECT (SELECT tenant FROM totals WHERE tenant > '' ORDER BY tenant LIMIT 1)
    UNION ALL
    SELECT (SELECT tenant FROM totals WHERE tenant > found.tenant ORDER BY tenant LIMIT 1)
    FROM found WHERE found.tenant IS NOT NULL
)

-- name: usage_of_all
-- Usage of all tenants by UTC day or model, and the total.
{of_all_tenants}, page AS (
    SELECT key, {sums} FROM found
    {join} totals {by_day} ON totals.tenant = found.tenant AND dimension = :dimension AND day BETWEEN :first AND :last
    WHERE key >= :start
    GROUP BY key ORDER BY key LIMIT :limit
)
SELECT 'part' AS kind, page.* FROM page
UNION ALL
SELECT 'total', '', {sums} FROM found
{join} totals {by_day} ON totals.tenant = found.tenant AND dimension = 'day' AND day BETWEEN :first AND :last

-- fragment: models_of_turn
-- A row for each model in the usage by model of a turn.
json_each(turns.by_model)

-- name: count_moved
-- Adds the usage of turns that also other models than the requested one have answered to totals by requested model
-- (:sign 1), or removes it (-1). Billed to a model is: its total, minus this one, plus that of count_billed. Like
-- count_usage.
INSERT INTO totals
SELECT usage.tenant, 'moved', usage.model, usage.asked_at / 86400000000, :sign * count(*), :sign * sum(messages),
    :sign * sum(input_tokens), :sign * sum(output_tokens), :sign * sum(cache_creation_input_tokens),
    :sign * sum(cache_read_input_tokens), :sign * sum(cost_nusd), max(usage.asked_at)
FROM {lists}(:listed{as_json}) AS written
{join} usage ON usage.tenant = written.value ->> 0 AND usage.session = written.value ->> 1
    AND usage.turn = written.value ->> 2
{join} turns ON turns.tenant = usage.tenant AND turns.turn = usage.turn
WHERE turns.by_model IS NOT NULL
GROUP BY usage.tenant, usage.model, usage.asked_at / 86400000000
{add_to_totals}

-- name: count_billed
-- Adds the usage of the same turns to totals by the model that is billed. Like count_moved.
INSERT INTO totals
SELECT usage.tenant, 'billed', field.key, usage.asked_at / 86400000000, :sign * count(*), 0,
    :sign * sum(CAST(coalesce(field.value ->> 'input_tokens', '0') AS BIGINT)),
    :sign * sum(CAST(coalesce(field.value ->> 'output_tokens', '0') AS BIGINT)),
    :sign * sum(CAST(coalesce(field.value ->> 'cache_creation_input_tokens', '0') AS BIGINT)),
    :sign * sum(CAST(coalesce(field.value ->> 'cache_read_input_tokens', '0') AS BIGINT)),
    :sign * sum(CAST(coalesce(field.value ->> 'cost_nusd', '0') AS BIGINT)), max(usage.asked_at)
FROM {lists}(:listed{as_json}) AS written
{join} usage ON usage.tenant = written.value ->> 0 AND usage.session = written.value ->> 1
    AND usage.turn = written.value ->> 2
{join} turns ON turns.tenant = usage.tenant AND turns.turn = usage.turn
CROSS JOIN {models_of_turn} AS field {key_value}
WHERE turns.by_model IS NOT NULL
GROUP BY usage.tenant, field.key, usage.asked_at / 86400000000
{add_to_totals}
