-- The SQL statements of erasures.

-- name: delete_user_sessions
-- Deletes the sessions of a user that have no turns.
DELETE FROM sessions WHERE tenant = :tenant AND "user" = :name
    AND NOT EXISTS (SELECT 1 FROM turns WHERE turns.tenant = :tenant AND turns.session = sessions.session)

-- name: delete_owned_sessions
-- Deletes the sessions that a user owns and that have no turns.
DELETE FROM sessions WHERE tenant = :tenant AND owner = :name
    AND NOT EXISTS (SELECT 1 FROM turns WHERE turns.tenant = :tenant AND turns.session = sessions.session)

-- name: forget_session_user
-- Removes the name, title and system prompt of a user without turns from sessions that have turns of others.
UPDATE sessions SET "user" = NULL, title = NULL, system = NULL WHERE tenant = :tenant AND "user" = :name

-- name: forget_session_owner
-- Removes the name of an owner without turns from its sessions.
UPDATE sessions SET owner = NULL WHERE tenant = :tenant AND owner = :name

-- name: delete_tenant_sessions
-- Deletes the sessions of a tenant without turns.
DELETE FROM sessions WHERE tenant = :tenant AND updated_at >= 0

-- fragment: newest_of_user
-- The newest turns with a user, and the newest that it owns.
SELECT turn FROM (
    SELECT turn FROM labels WHERE tenant = :tenant AND name = 'user' AND value = :name
    ORDER BY asked_at DESC, turn DESC LIMIT :limit
) AS found
UNION
SELECT turn FROM (
    SELECT turn FROM labels WHERE tenant = :tenant AND name = 'owner' AND value = :name
    ORDER BY asked_at DESC, turn DESC LIMIT :limit
) AS found

-- name: user_turn_ids
-- The newest turns of a user and those that continue them, newest first: no turn before its follow-ups. UNION removes
-- repeated turns: most turns of a user also continue another one of them.
WITH RECURSIVE page (turn) AS ({newest_of_user}), branch (turn) AS (
    SELECT turn FROM page
    UNION
    SELECT turns.turn FROM branch JOIN turns ON turns.tenant = :tenant AND turns.parent = branch.turn
)
SELECT turns.turn, turns.outcome FROM branch
{join} turns ON turns.tenant = :tenant AND turns.turn = branch.turn
ORDER BY asked_at DESC, turns.turn DESC LIMIT :limit

-- name: tenant_turn_ids
-- Some turns of a tenant, newest first.
SELECT turn, outcome FROM turns WHERE tenant = :tenant AND asked_at >= 0 ORDER BY asked_at DESC, turn DESC LIMIT :limit
