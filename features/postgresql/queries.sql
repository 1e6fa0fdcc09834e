-- The parts of PostgreSQL, each of which replaces the part of the same name in persistence/queries.sql or in the
-- queries.sql of a feature. Comments there say what it is for.

-- fragment: join
JOIN

-- fragment: least
least

-- fragment: greatest
greatest

-- fragment: as_json
::json

-- fragment: texts
json_array_elements_text

-- fragment: lists
json_array_elements

-- fragment: fields
json_each_text

-- fragment: names_of_usage
LATERAL (
    SELECT 'session' AS key, usage.session AS value
    UNION ALL SELECT name, value FROM labels
    WHERE labels.tenant = usage.tenant AND labels.turn = usage.turn AND name > 'metadata.' AND name < 'metadata/'
)

-- fragment: dimensions_of_usage
LATERAL (
    VALUES ('day', to_char(to_timestamp(usage.asked_at / 1000000) AT TIME ZONE 'UTC', 'YYYY-MM-DD')),
        ('session', usage.session), ('project', coalesce(sessions.project, '')), ('model', usage.model),
        ('key', coalesce(asked_by, '')), ('user', coalesce(turns.user, ''))
    UNION ALL SELECT name, value FROM labels
    WHERE labels.tenant = usage.tenant AND labels.turn = usage.turn AND name > 'metadata.' AND name < 'metadata/'
)

-- fragment: project_joined
(VALUES ('', -1), (:project, 1))

-- fragment: key_value
(key, value)

-- fragment: by_running

-- fragment: by_outcome

-- fragment: with_totals
SELECT page.*, {first_input}, sums.*
FROM page CROSS JOIN LATERAL (
    SELECT {sums} FROM totals WHERE totals.tenant = :tenant AND dimension = 'session' AND key = page.session
) AS sums
ORDER BY page.updated_at DESC, page.session DESC

-- fragment: by_user

-- fragment: by_batch

-- fragment: batch_api
tailrace_batch_api(batch)

-- fragment: by_decision

-- name: user_turn_ids
-- The same. Without OFFSET, the planner expects many follow-ups, and reads the turns of all tenants.
WITH RECURSIVE page (turn) AS ({newest_of_user}), branch (turn) AS (
    SELECT turn FROM page
    UNION
    SELECT found.turn FROM branch CROSS JOIN LATERAL (
        SELECT turn FROM turns WHERE tenant = :tenant AND turns.parent = branch.turn OFFSET 0
    ) AS found
)
SELECT found.turn, found.outcome FROM branch CROSS JOIN LATERAL (
    SELECT turn, outcome, asked_at FROM turns WHERE tenant = :tenant AND turns.turn = branch.turn OFFSET 0
) AS found
ORDER BY found.asked_at DESC, found.turn DESC LIMIT :limit

-- fragment: projects_with_totals
SELECT page.*, {project_facts}, sums.*
FROM page CROSS JOIN LATERAL (
    SELECT {sums} FROM totals WHERE totals.tenant = :tenant AND dimension = 'project' AND key = page.project
) AS sums
ORDER BY created_at DESC, page.project DESC

-- fragment: contain_words
tailrace_words(searched.words) @> string_to_array(:words, ' ')

-- fragment: found
-- The same in any range: the index of words has no order. At most :offset rows are read.
SELECT number, turn FROM (
    SELECT number, turn, tenant FROM searched WHERE {contain_words} LIMIT :offset
) AS searched
WHERE tenant = :tenant

-- name: end_of_found_turns
-- Whether more than :offset turns have all words of :words: a row without a position.
SELECT 0 AS asked_at, '' AS turn FROM searched WHERE {contain_words} LIMIT 1 OFFSET :offset

-- fragment: day_of_turn
to_char(to_timestamp(one.asked_at / 1000000) AT TIME ZONE 'UTC', 'YYYY-MM-DD')

-- fragment: by_day

-- fragment: recursion_max

-- fragment: page_of_keys
(SELECT key FROM keys LIMIT :limit) AS keys

-- fragment: page_of_tenants
(SELECT tenant FROM found LIMIT :limit) AS found

-- fragment: models_of_turn
LATERAL json_each(turns.by_model::json)

