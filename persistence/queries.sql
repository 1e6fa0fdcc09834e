-- All SQL statements of persistence, loaded by sql.py.
--
-- `-- name: x` begins a statement, `-- fragment: x` a text that statements include as {x}. The file of another database
-- may replace each of both by its name. All statements name the tenant first, except those for the process itself, and
-- use an index: a test checks the query plans of each database.

-- fragment: join
-- A join in the order of the text. Without the order SQLite's planner read all turns of the tenant.
CROSS JOIN

-- fragment: least
min

-- fragment: greatest
max

-- fragment: as_json
-- The type of a text that is JSON.

-- fragment: texts
-- A row of `value` for each text of a JSON list.
json_each

-- fragment: lists
-- A row of `value` for each list of a JSON list.
json_each

-- fragment: fields
-- A row of `key` and `value` for each field of a JSON object with texts.
json_each

-- name: put_session
-- Upserts the session of a turn. Its times are those of its first and its latest turn; its project and its user are the
-- first ones that a turn named. Its owner stays: that of its first turn, unless it was created before.
INSERT INTO sessions (tenant, session, project, "user", owner, created_at, updated_at)
VALUES (:tenant, :session, :project, :user, :owner, :asked_at, coalesce(:ended_at, :asked_at))
ON CONFLICT (tenant, session) DO UPDATE SET
    project = coalesce(sessions.project, excluded.project),
    "user" = coalesce(sessions.user, excluded.user),
    created_at = {least}(sessions.created_at, excluded.created_at),
    updated_at = {greatest}(sessions.updated_at, excluded.updated_at)

-- name: put_turn
-- Upserts a turn. A fold of fewer or the same entries of the log changes nothing. Runs after put_session: the owner of a
-- turn is that of its session, also if the turn was made by a version without owners, or in a session that another user
-- has begun at the same moment.
INSERT INTO turns (
    tenant, turn, session, parent, model, outcome, input, content, text, stop_reason, stop_sequence, envelope, fits,
    error, attempts, metadata, asked_at, first_token_at, ended_at, cursor, text_chars, text_sha256, cost_is_unknown,
    project, "user", owner, answered_by, by_model, details
) VALUES (
    :tenant, :turn, :session, :parent, :model, :outcome, :input, :content, :text, :stop_reason, :stop_sequence,
    :envelope, :fits, :error, :attempts, :metadata, :asked_at, :first_token_at, :ended_at, :cursor, :text_chars,
    :text_sha256, :cost_is_unknown, :project, :user,
    (SELECT owner FROM sessions WHERE tenant = :tenant AND session = :session), :answered_by, :by_model, :details
)
ON CONFLICT (tenant, turn) DO UPDATE SET
    outcome = excluded.outcome,
    content = excluded.content,
    text = excluded.text,
    stop_reason = excluded.stop_reason,
    stop_sequence = excluded.stop_sequence,
    envelope = excluded.envelope,
    fits = excluded.fits,
    error = excluded.error,
    attempts = excluded.attempts,
    first_token_at = excluded.first_token_at,
    ended_at = excluded.ended_at,
    cursor = excluded.cursor,
    text_chars = excluded.text_chars,
    text_sha256 = excluded.text_sha256,
    cost_is_unknown = excluded.cost_is_unknown,
    answered_by = excluded.answered_by,
    by_model = excluded.by_model,
    details = excluded.details
WHERE excluded.cursor > turns.cursor

-- name: put_usage
-- Upserts the usage of a turn if its row is that of the same fold. Runs after put_turn, in its transaction.
INSERT INTO usage (
    tenant, session, turn, input_tokens, output_tokens, cache_creation_input_tokens, cache_read_input_tokens,
    is_estimated, cost_nusd, messages, model, asked_at, asked_by
)
SELECT tenant, session, turn,
    :input_tokens, :output_tokens, :cache_creation_input_tokens, :cache_read_input_tokens,
    :is_estimated, :cost_nusd, :messages, model, asked_at, :asked_by
FROM turns WHERE tenant = :tenant AND turn = :turn AND cursor = :cursor
ON CONFLICT (tenant, session, turn) DO UPDATE SET
    input_tokens = excluded.input_tokens,
    output_tokens = excluded.output_tokens,
    cache_creation_input_tokens = excluded.cache_creation_input_tokens,
    cache_read_input_tokens = excluded.cache_read_input_tokens,
    is_estimated = excluded.is_estimated,
    cost_nusd = excluded.cost_nusd,
    messages = excluded.messages,
    asked_by = excluded.asked_by

-- name: put_labels
-- Stores the labels of a turn. They follow from its request and never change.
INSERT INTO labels (tenant, turn, name, value, asked_at)
SELECT :tenant, :turn, key, value, :asked_at FROM {fields}(:labels{as_json}) WHERE true
ON CONFLICT (tenant, turn, name) DO NOTHING

-- fragment: add_to_totals
-- Adds the counts of an INSERT to the totals that exist.
ON CONFLICT (tenant, dimension, key, day) DO UPDATE SET
    turns = totals.turns + excluded.turns,
    messages = totals.messages + excluded.messages,
    input_tokens = totals.input_tokens + excluded.input_tokens,
    output_tokens = totals.output_tokens + excluded.output_tokens,
    cache_creation_input_tokens = totals.cache_creation_input_tokens + excluded.cache_creation_input_tokens,
    cache_read_input_tokens = totals.cache_read_input_tokens + excluded.cache_read_input_tokens,
    cost_nusd = totals.cost_nusd + excluded.cost_nusd,
    asked_at = {greatest}(totals.asked_at, excluded.asked_at)

-- fragment: signed_usage
-- The usage of a turn as counts of a total, to be added (:sign 1) or removed (-1).
usage.asked_at / 86400000000, :sign, :sign * messages, :sign * input_tokens, :sign * output_tokens,
    :sign * cache_creation_input_tokens, :sign * cache_read_input_tokens, :sign * cost_nusd, usage.asked_at

-- fragment: names_of_usage
-- A row for the session and for each metadata of a turn in `usage`.
json_each(json_patch(json_object('session', usage.session), (
    SELECT json_group_object(name, value) FROM labels
    WHERE labels.tenant = usage.tenant AND labels.turn = usage.turn AND name > 'metadata.' AND name < 'metadata/'
)))

-- fragment: dimensions_of_usage
-- A row for each total in which a turn in `usage`, `sessions` and `turns` counts.
json_each(json_patch(
    json_object(
        'day', date(usage.asked_at / 1000000, 'unixepoch'), 'session', usage.session,
        'project', coalesce(sessions.project, ''), 'model', usage.model, 'key', coalesce(asked_by, ''),
        'user', coalesce(turns.user, '')
    ),
    (SELECT json_group_object(name, value) FROM labels
        WHERE labels.tenant = usage.tenant AND labels.turn = usage.turn AND name > 'metadata.' AND name < 'metadata/')
))

-- fragment: project_joined
-- A row for each total that changes when a session joins a project.
json_each(json_object('', -1, :project, 1))

-- fragment: key_value
-- The names of the columns, where the database has no others.

-- name: count_usage
-- Adds the usage of turns to the totals of all their dimensions (:sign 1), or removes it (-1). `listed` is a JSON list of
-- [tenant, session, turn]. Runs before and after put_usage, once for many turns: most of them have dimensions in common.
INSERT INTO totals
SELECT usage.tenant, field.key, field.value, usage.asked_at / 86400000000, :sign * count(*), :sign * sum(messages),
    :sign * sum(input_tokens), :sign * sum(output_tokens), :sign * sum(cache_creation_input_tokens),
    :sign * sum(cache_read_input_tokens), :sign * sum(cost_nusd), max(usage.asked_at)
FROM {lists}(:listed{as_json}) AS written
{join} usage ON usage.tenant = written.value ->> 0 AND usage.session = written.value ->> 1
    AND usage.turn = written.value ->> 2
{join} sessions ON sessions.tenant = usage.tenant AND sessions.session = usage.session
{join} turns ON turns.tenant = usage.tenant AND turns.turn = usage.turn
CROSS JOIN {dimensions_of_usage} AS field {key_value}
GROUP BY usage.tenant, field.key, field.value, usage.asked_at / 86400000000
{add_to_totals}

-- name: count_project
-- Moves the usage of a session into the project that a turn names first. Runs before put_session.
INSERT INTO totals
SELECT usage.tenant, 'project', moved.key, usage.asked_at / 86400000000, moved.value * count(*),
    moved.value * sum(messages), moved.value * sum(input_tokens), moved.value * sum(output_tokens),
    moved.value * sum(cache_creation_input_tokens), moved.value * sum(cache_read_input_tokens),
    moved.value * sum(cost_nusd), max(usage.asked_at)
FROM sessions
{join} usage ON usage.tenant = :tenant AND usage.session = sessions.session
CROSS JOIN {project_joined} AS moved {key_value}
WHERE sessions.tenant = :tenant AND sessions.session = :session AND sessions.project IS NULL
GROUP BY usage.tenant, moved.key, moved.value, usage.asked_at / 86400000000
{add_to_totals}

-- name: put_blob_uses
-- Stores which blobs a turn refers to. They follow from its request and never change.
INSERT INTO blob_uses (tenant, sha256, turn) SELECT :tenant, value, :turn FROM {texts}(:blobs{as_json}) WHERE true
ON CONFLICT (tenant, sha256, turn) DO NOTHING

-- name: fail_expired_turns
-- Ends the running turns of all tenants as failed whose entries are all older than the log's first.
UPDATE turns SET outcome = 'failed', error = :error WHERE outcome = 'running' AND cursor < :first

-- name: set_recorded_upto
-- Stores up to which sequence the log is recorded, in the transaction that records it. Changes nothing in a database that
-- lacks what was recorded up to :known.
UPDATE reached SET seq = {greatest}(seq, :seq) WHERE seq >= :known

-- name: reset_recorded_upto
-- Resets the sequence of `set_recorded_upto`, before the log is replayed from its beginning.
UPDATE reached SET seq = 0

-- name: recorded_upto
-- Returns the sequence of `set_recorded_upto`.
SELECT seq FROM reached

-- name: has_recorded
-- Returns a row if anything of a log was ever recorded. A replay from the log's beginning has reset the sequence, and
-- leaves the sessions. The condition on their time makes the planner use an index.
SELECT seq FROM reached WHERE seq > 0 OR EXISTS (SELECT 1 FROM sessions WHERE updated_at < 9223372036854775807)

-- name: database_id
-- Returns the id of the database.
SELECT id FROM identity

-- name: fail_turn
-- Ends a turn as failed that is running here and is not in the log.
UPDATE turns SET outcome = 'failed', error = :error WHERE tenant = :tenant AND turn = :turn AND outcome = 'running'

-- name: running_turns
-- The running turns of all tenants.
SELECT tenant, turn FROM turns WHERE outcome = 'running'

-- name: create_session
-- Creates a session before its first turn; changes nothing if the name is in use.
INSERT INTO sessions (tenant, session, title, model, system, project, "user", owner, created_at, updated_at)
VALUES (:tenant, :session, :title, :model, :system, :project, :user, :owner, :asked_at, :asked_at)
ON CONFLICT (tenant, session) DO NOTHING

-- name: set_session_title
-- Changes a title. The time of the last use stays, so that lists keep their order.
UPDATE sessions SET title = :value WHERE tenant = :tenant AND session = :session

-- name: set_session_model
-- Changes the model of turns that name none.
UPDATE sessions SET model = :value WHERE tenant = :tenant AND session = :session

-- name: set_session_system
-- Changes the system prompt of turns that have none.
UPDATE sessions SET system = :value WHERE tenant = :tenant AND session = :session

-- name: release_blobs
-- Releases the blobs of a turn, before its row is deleted: the collector checks whether other turns refer to them.
INSERT INTO blob_releases (tenant, sha256) SELECT tenant, sha256 FROM blob_uses WHERE tenant = :tenant AND turn = :turn
ON CONFLICT (tenant, sha256) DO NOTHING

-- name: release_named_blobs
-- Releases the blobs of a turn that has no row.
INSERT INTO blob_releases (tenant, sha256) SELECT :tenant, value FROM {texts}(:blobs{as_json}) WHERE true
ON CONFLICT (tenant, sha256) DO NOTHING

-- name: delete_blob_uses
-- Deletes which blobs a turn refers to.
DELETE FROM blob_uses WHERE tenant = :tenant AND turn = :turn

-- name: owned_blob_use
-- Finds a turn of one owner that refers to a blob.
SELECT turns.turn FROM blob_uses
{join} turns ON turns.tenant = :tenant AND turns.turn = blob_uses.turn
WHERE blob_uses.tenant = :tenant AND sha256 = :sha256 AND owner = :owner LIMIT 1

-- name: blob_reference
-- Finds a turn that refers to a blob.
SELECT turn FROM blob_uses WHERE tenant = :tenant AND sha256 = :sha256 LIMIT 1

-- name: forget_released_blob
-- Removes a released blob that was purged.
DELETE FROM blob_releases WHERE tenant = :tenant AND sha256 = :sha256

-- name: keep_used_blob
-- Removes a released blob that is referred to. One whose last turn has just been deleted stays released.
DELETE FROM blob_releases WHERE tenant = :tenant AND sha256 = :sha256
    AND EXISTS (SELECT 1 FROM blob_uses WHERE blob_uses.tenant = :tenant AND blob_uses.sha256 = :sha256)

-- name: released_blobs
-- The released blobs of a tenant after one of them.
SELECT sha256 FROM blob_releases WHERE tenant = :tenant AND sha256 > :after ORDER BY sha256 LIMIT :limit

-- name: tenants_with_released_blobs
-- The tenants that have released blobs.
SELECT DISTINCT tenant FROM blob_releases LIMIT :limit

-- name: uncount_deleted
-- Removes a turn that is about to be deleted from the totals of its session and its metadata. All other totals of the
-- tenant keep its usage, which was paid for.
INSERT INTO totals
SELECT usage.tenant, field.key, field.value, {signed_usage}
FROM usage CROSS JOIN {names_of_usage} AS field {key_value}
WHERE usage.tenant = :tenant AND usage.session = (SELECT session FROM turns WHERE tenant = :tenant AND turn = :turn)
    AND usage.turn = :turn
{add_to_totals}

-- name: count_deleted
-- Adds the usage of a turn that is about to be deleted to the total of turns without a session, whose key is ''.
INSERT INTO totals
SELECT usage.tenant, 'session', '', {signed_usage}
FROM usage
WHERE usage.tenant = :tenant AND usage.session = (SELECT session FROM turns WHERE tenant = :tenant AND turn = :turn)
    AND usage.turn = :turn
{add_to_totals}

-- name: delete_empty_totals
-- Deletes those totals of a deleted turn's session and metadata that count no other turn, because their keys are names.
DELETE FROM totals WHERE tenant = :tenant AND turns = 0 AND (dimension, key, day) IN (
    SELECT field.key, field.value, usage.asked_at / 86400000000
    FROM usage CROSS JOIN {names_of_usage} AS field {key_value}
    WHERE usage.tenant = :tenant AND usage.session = (SELECT session FROM turns WHERE tenant = :tenant AND turn = :turn)
        AND usage.turn = :turn
)

-- name: delete_labels
-- Deletes what a turn was found by.
DELETE FROM labels WHERE tenant = :tenant AND turn = :turn

-- name: delete_usage
-- Deletes the usage of a turn, before its row.
DELETE FROM usage WHERE tenant = :tenant AND turn = :turn

-- name: delete_turns
-- Deletes turns: `listed` is a JSON list.
DELETE FROM turns WHERE tenant = :tenant AND turn IN (SELECT value FROM {texts}(:listed{as_json}))

-- name: delete_session
-- Deletes a session if it has no turns: a turn that has just arrived keeps it.
DELETE FROM sessions WHERE tenant = :tenant AND session = :name
    AND NOT EXISTS (SELECT 1 FROM turns WHERE turns.tenant = :tenant AND turns.session = sessions.session)

-- name: sessions_of_turns
-- The sessions of turns: `listed` is a JSON list.
SELECT DISTINCT session FROM {texts}(:listed{as_json}) AS written
{join} turns ON turns.tenant = :tenant AND turns.turn = written.value

-- name: delete_listed_sessions
-- Deletes those of some sessions that have no turns, of one user unless it is null: `listed` is a JSON list.
DELETE FROM sessions WHERE tenant = :tenant AND session IN (SELECT value FROM {texts}(:listed{as_json}))
    AND (:user IS NULL OR "user" = :user)
    AND NOT EXISTS (SELECT 1 FROM turns WHERE turns.tenant = :tenant AND turns.session = sessions.session)

-- name: count_nameless
-- Adds the totals of names that are about to be deleted, from one to another, to those without a name.
INSERT INTO totals
SELECT tenant, dimension, '', day, sum(turns), sum(messages), sum(input_tokens), sum(output_tokens),
    sum(cache_creation_input_tokens), sum(cache_read_input_tokens), sum(cost_nusd), max(asked_at)
FROM totals WHERE tenant = :tenant AND dimension = :dimension AND key BETWEEN :name AND :last_name AND key <> ''
GROUP BY tenant, dimension, day
{add_to_totals}

-- name: delete_totals
-- Deletes the totals of these names.
DELETE FROM totals WHERE tenant = :tenant AND dimension = :dimension AND key BETWEEN :name AND :last_name AND key <> ''

-- name: turn
-- One turn.
SELECT * FROM turns JOIN usage USING (tenant, session, turn)
WHERE tenant = :tenant AND turn = :turn

-- name: owner_of_turn
-- The owner of a turn.
SELECT owner FROM turns WHERE tenant = :tenant AND turn = :name

-- name: owner_of_session
-- The owner of a session.
SELECT owner FROM sessions WHERE tenant = :tenant AND session = :name

-- name: session_turns
-- The turns of a session after a cursor, oldest first.
SELECT * FROM turns JOIN usage USING (tenant, session, turn)
WHERE tenant = :tenant AND session = :session AND (turns.asked_at, turn) > (:after_at, :after)
ORDER BY turns.asked_at, turn LIMIT :limit

-- name: session_turns_newest
-- The turns of a session before a cursor, newest first.
SELECT * FROM turns JOIN usage USING (tenant, session, turn)
WHERE tenant = :tenant AND session = :session AND (turns.asked_at, turn) < (:after_at, :after)
ORDER BY turns.asked_at DESC, turn DESC LIMIT :limit

-- name: turns_since
-- The turns of a session that run, or whose last entry is after another one.
SELECT turn, cursor, outcome = 'running' AS is_running FROM turns
WHERE tenant = :tenant AND session = :session AND (outcome = 'running' OR cursor > :since)
ORDER BY cursor LIMIT 500

-- fragment: by_running
-- By an index in the order of the page SQLite would read turns that have ended, too.
INDEXED BY turns_running

-- name: running
-- The ids of the running turns after a cursor, oldest first, of one session or of all, and of one owner unless it is
-- null.
SELECT turn FROM turns {by_running}
WHERE tenant = :tenant AND outcome = 'running' AND (:session IS NULL OR session = :session)
  AND (:owner IS NULL OR owner = :owner)
  AND (asked_at, turn) > (:after_at, :after)
ORDER BY asked_at, turn LIMIT :limit

-- fragment: has_labels
-- Whether a row `one` of a turn has all labels of the JSON object `others`.
NOT EXISTS (
        SELECT 1 FROM {fields}(:others{as_json}) AS other WHERE NOT EXISTS (
            SELECT 1 FROM labels
            WHERE tenant = :tenant AND labels.turn = one.turn AND name = other.key AND labels.value = other.value
        )
    )

-- fragment: has_outcome
-- Whether a row `one` of a turn has the outcome :outcome, which may be empty.
(:outcome = '' OR (
        SELECT outcome FROM turns WHERE turns.tenant = :tenant AND turns.turn = one.turn
    ) = :outcome)

-- fragment: turns_in_range
-- The turns with an outcome, from a position on and before a cursor. It checks no labels.
SELECT one.*, usage.* FROM turns AS one
{join} usage ON usage.tenant = :tenant AND usage.session = one.session AND usage.turn = one.turn
WHERE one.tenant = :tenant
    AND (one.asked_at, one.turn) >= (:from_at, :start) AND (one.asked_at, one.turn) < (:before_at, :before)
    AND {has_outcome}

-- fragment: newest_of_page
-- The newest turns of a range.
ORDER BY one.asked_at DESC, one.turn DESC LIMIT :limit

-- name: turns
-- The turns with an outcome, newest first.
{turns_in_range}
{newest_of_page}

-- name: slowest_turns
-- The ids: among the newest :offset turns of a range, those with all labels and the outcome whose first token took longest.
SELECT one.turn FROM (
    SELECT turn, first_token_at - asked_at AS waited FROM turns
    WHERE tenant = :tenant AND (asked_at, turn) >= (:from_at, :start) AND (asked_at, turn) < (:before_at, :before)
    ORDER BY asked_at DESC, turn DESC LIMIT :offset
) AS found
{join} turns AS one ON one.tenant = :tenant AND one.turn = found.turn
WHERE found.waited IS NOT NULL AND {has_labels} AND {has_outcome}
ORDER BY found.waited DESC, one.turn LIMIT :limit

-- fragment: costliest_of_days
-- The ids of turns in `one`, a row of `usage`, with all labels and the outcome, those that cost most first.
one.asked_at >= :from_at AND one.asked_at < :before_at AND {has_labels} AND {has_outcome}
ORDER BY one.cost_nusd DESC, one.turn LIMIT :limit

-- name: costliest_turns
-- The ids of the costliest turns of some days.
SELECT one.turn FROM usage AS one WHERE one.tenant = :tenant AND {costliest_of_days}

-- name: costliest_labelled_turns
-- The same, by the index of one label.
SELECT one.turn FROM labels AS label
{join} usage AS one ON one.tenant = :tenant AND one.turn = label.turn
WHERE label.tenant = :tenant AND label.name = :name AND label.value = :value
    AND label.asked_at >= :from_at AND label.asked_at < :before_at AND {costliest_of_days}

-- name: end_of_turns
-- The position of the turn that is :offset turns older than the newest one of `turns`; none if there are fewer.
SELECT asked_at, turn FROM turns
WHERE tenant = :tenant AND (asked_at, turn) >= (:from_at, :start) AND (asked_at, turn) < (:before_at, :before)
ORDER BY asked_at DESC, turn DESC LIMIT 1 OFFSET :offset

-- fragment: by_outcome
-- By the index of all turns SQLite would read completed ones, too.
INDEXED BY turns_cancelled_or_failed

-- fragment: is_indexed_outcome
-- Turns that are cancelled or failed, as :outcome says. In this form the databases find that the index has them all.
outcome IN ('cancelled', 'failed') AND outcome = :outcome

-- fragment: turns_of_outcome_in_range
-- The same as `turns_in_range`, by the index of cancelled and failed turns, with all labels of `others`.
SELECT one.*, usage.* FROM turns AS one {by_outcome}
{join} usage ON usage.tenant = :tenant AND usage.session = one.session AND usage.turn = one.turn
WHERE one.tenant = :tenant AND {is_indexed_outcome}
    AND (one.asked_at, one.turn) >= (:from_at, :start) AND (one.asked_at, one.turn) < (:before_at, :before)
    AND {has_labels}

-- name: turns_of_outcome
-- The cancelled or failed turns, newest first.
{turns_of_outcome_in_range}
{newest_of_page}

-- name: end_of_turns_of_outcome
-- The same as `end_of_turns`, among the turns of an outcome.
SELECT asked_at, turn FROM turns {by_outcome}
WHERE tenant = :tenant AND {is_indexed_outcome}
    AND (asked_at, turn) >= (:from_at, :start) AND (asked_at, turn) < (:before_at, :before)
ORDER BY asked_at DESC, turn DESC LIMIT 1 OFFSET :offset

-- fragment: labelled_turns_in_range
-- The same as `turns_in_range`, by the index of one label, with all labels of `others`.
SELECT turns.*, usage.* FROM labels AS one
{join} turns ON turns.tenant = :tenant AND turns.turn = one.turn
{join} usage ON usage.tenant = :tenant AND usage.session = turns.session AND usage.turn = turns.turn
WHERE one.tenant = :tenant AND one.name = :name AND one.value = :value
    AND (one.asked_at, one.turn) >= (:from_at, :start) AND (one.asked_at, one.turn) < (:before_at, :before)
    AND {has_labels} AND {has_outcome}

-- name: labelled_turns
-- The turns with a label, newest first.
{labelled_turns_in_range}
{newest_of_page}

-- name: end_of_labelled_turns
-- The same as `end_of_turns`, among the turns with a label.
SELECT asked_at, turn FROM labels
WHERE tenant = :tenant AND name = :name AND value = :value
    AND (asked_at, turn) >= (:from_at, :start) AND (asked_at, turn) < (:before_at, :before)
ORDER BY asked_at DESC, turn DESC LIMIT 1 OFFSET :offset

-- name: last_turn
-- The newest turn of a session.
SELECT turn FROM turns
WHERE tenant = :tenant AND session = :session
ORDER BY asked_at DESC, turn DESC LIMIT 1

-- fragment: ancestors
-- A turn and its ancestors. `depth_max` also ends a circle of parents, which should not exist.
WITH RECURSIVE branch (depth, turn, parent) AS (
    SELECT 0, turn, parent FROM turns WHERE tenant = :tenant AND turn = :turn
    UNION ALL
    SELECT depth + 1, turns.turn, turns.parent
    FROM branch JOIN turns ON turns.tenant = :tenant AND turns.turn = branch.parent
    WHERE depth < :depth_max
)

-- name: branch
-- A turn and its ancestors, oldest first.
{ancestors}
SELECT turns.*, usage.* FROM branch
{join} turns ON turns.tenant = :tenant AND turns.turn = branch.turn
{join} usage ON usage.tenant = :tenant AND usage.session = turns.session AND usage.turn = turns.turn
ORDER BY branch.depth DESC

-- name: branch_ids
-- The ids of a turn and its ancestors, oldest first.
{ancestors} SELECT turn FROM branch ORDER BY depth DESC

-- name: leaves
-- The turns of a session without follow-ups, before a cursor, newest first.
SELECT turn, outcome, asked_at FROM turns AS leaf
WHERE tenant = :tenant AND session = :session AND (asked_at, turn) < (:before_at, :before)
    AND NOT EXISTS (SELECT 1 FROM turns WHERE turns.tenant = :tenant AND turns.parent = leaf.turn)
ORDER BY asked_at DESC, turn DESC LIMIT :limit

-- name: turn_and_follow_ups
-- A turn and all its follow-ups, deepest first, so that a deletion that is interrupted can continue.
WITH RECURSIVE branch (depth, turn) AS (
    SELECT 0, turn FROM turns WHERE tenant = :tenant AND turn = :name
    UNION ALL
    SELECT depth + 1, turns.turn
    FROM branch JOIN turns ON turns.tenant = :tenant AND turns.parent = branch.turn
    WHERE depth < :depth_max
)
SELECT turns.turn, turns.outcome FROM branch
{join} turns ON turns.tenant = :tenant AND turns.turn = branch.turn
GROUP BY turns.turn, turns.outcome ORDER BY max(depth) DESC LIMIT :limit

-- name: session_turn_ids
-- Some turns of a session.
SELECT turn, outcome FROM turns WHERE tenant = :tenant AND session = :name LIMIT :limit

-- fragment: summed
-- The columns of totals, without the number of turns.
    coalesce(sum(messages), 0) AS messages,
    coalesce(sum(input_tokens), 0) AS input_tokens,
    coalesce(sum(output_tokens), 0) AS output_tokens,
    coalesce(sum(cache_creation_input_tokens), 0) AS cache_creation_input_tokens,
    coalesce(sum(cache_read_input_tokens), 0) AS cache_read_input_tokens,
    coalesce(sum(cost_nusd), 0) AS cost_nusd,
    max(asked_at) AS last_used_at

-- fragment: sums
-- The columns of totals, from sums by day.
    coalesce(sum(turns), 0) AS turns,
    {summed}

-- fragment: first_input
-- The messages of the first turn of a session in `page`, up to one character more than PREVIEW_INPUT_CHARS_MAX.
(SELECT substr(input, 1, 262145) FROM turns
    WHERE turns.tenant = :tenant AND turns.session = page.session
    ORDER BY turns.asked_at, turns.turn LIMIT 1) AS first_input

-- fragment: with_totals
-- Sessions in `page` with their totals.
SELECT page.*, {first_input}, {sums}
FROM page LEFT JOIN totals ON totals.tenant = :tenant AND dimension = 'session' AND key = page.session
GROUP BY page.session
ORDER BY page.updated_at DESC, page.session DESC

-- name: session
-- One session, with the totals of all its branches.
WITH page AS (SELECT * FROM sessions WHERE tenant = :tenant AND session = :session)
{with_totals}

-- name: sessions
-- The sessions of a tenant before a cursor, most recent first, with totals.
WITH page AS (
    SELECT * FROM sessions
    WHERE tenant = :tenant AND (updated_at, session) < (:before_at, :before)
    ORDER BY updated_at DESC, session DESC LIMIT :limit
)
{with_totals}

-- name: project_sessions
-- The same for one project. A statement of its own, so that each has an index in the order of the page.
WITH page AS (
    SELECT * FROM sessions
    WHERE tenant = :tenant AND project = :project AND (updated_at, session) < (:before_at, :before)
    ORDER BY updated_at DESC, session DESC LIMIT :limit
)
{with_totals}

-- name: user_sessions
-- The sessions of one user before a cursor, newest first, with totals.
WITH page AS (
    SELECT * FROM sessions
    WHERE tenant = :tenant AND "user" = :user AND (updated_at, session) < (:before_at, :before)
    ORDER BY updated_at DESC, session DESC LIMIT :limit
)
{with_totals}

-- name: project_user_sessions
-- The same, of one user in one project.
WITH page AS (
    SELECT * FROM sessions
    WHERE tenant = :tenant AND project = :project AND "user" = :user
        AND (updated_at, session) < (:before_at, :before)
    ORDER BY updated_at DESC, session DESC LIMIT :limit
)
{with_totals}

-- name: owner_sessions
-- The same, of one owner; of one project and one user unless they are null.
WITH page AS (
    SELECT * FROM sessions
    WHERE tenant = :tenant AND owner = :owner AND (updated_at, session) < (:before_at, :before)
        AND (:project IS NULL OR project = :project) AND (:user IS NULL OR "user" = :user)
    ORDER BY updated_at DESC, session DESC LIMIT :limit
)
{with_totals}

-- name: sessions_from
-- The sessions of a tenant from the one with a number on, most recent first, with totals.
WITH page AS (
    SELECT * FROM sessions WHERE tenant = :tenant
    ORDER BY updated_at DESC, session DESC LIMIT :limit OFFSET :offset
)
{with_totals}

-- name: project_sessions_from
-- The same for one project.
WITH page AS (
    SELECT * FROM sessions WHERE tenant = :tenant AND project = :project
    ORDER BY updated_at DESC, session DESC LIMIT :limit OFFSET :offset
)
{with_totals}

-- name: user_sessions_from
-- The same for one user, of one project unless it is null.
WITH page AS (
    SELECT * FROM sessions WHERE tenant = :tenant AND "user" = :user AND (:project IS NULL OR project = :project)
    ORDER BY updated_at DESC, session DESC LIMIT :limit OFFSET :offset
)
{with_totals}

-- name: owner_sessions_from
-- The same, of one owner; of one project and one user unless they are null.
WITH page AS (
    SELECT * FROM sessions
    WHERE tenant = :tenant AND owner = :owner
        AND (:project IS NULL OR project = :project) AND (:user IS NULL OR "user" = :user)
    ORDER BY updated_at DESC, session DESC LIMIT :limit OFFSET :offset
)
{with_totals}

-- name: count_sessions
-- The number of sessions of a project, of all sessions of the tenant for ''.
SELECT coalesce(max(sessions), 0) AS total FROM session_counts WHERE tenant = :tenant AND project = :project

-- fragment: by_user
-- SQLite would choose another index.
INDEXED BY sessions_by_user

-- name: count_user_sessions
-- The number of sessions of a user.
SELECT count(*) AS total FROM sessions {by_user}
WHERE tenant = :tenant AND "user" = :user AND (:project IS NULL OR project = :project)

-- name: count_owner_sessions
-- The number of sessions of an owner; of one project and one user unless they are null.
SELECT count(*) AS total FROM sessions
WHERE tenant = :tenant AND owner = :owner
    AND (:project IS NULL OR project = :project) AND (:user IS NULL OR "user" = :user)
