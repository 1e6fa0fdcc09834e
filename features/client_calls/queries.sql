-- The SQL statements of calls of client tools that wait for a decision.

-- name: park_turn
-- Parks a turn that ended with calls, unless its session has a newer turn. A session has one parked turn, the newest.
INSERT INTO parked_turns (tenant, session, turn, asked_at, ended_at, undecided, request)
SELECT :tenant, :session, :turn, :asked_at, :ended_at, :calls_number - (
    SELECT count(*) FROM call_decisions WHERE tenant = :tenant AND session = :session AND turn = :turn
), :request
WHERE NOT EXISTS (
    SELECT 1 FROM turns
    WHERE turns.tenant = :tenant AND turns.session = :session AND (turns.asked_at, turns.turn) > (:asked_at, :turn)
)
ON CONFLICT (tenant, session) DO UPDATE SET
    turn = excluded.turn,
    asked_at = excluded.asked_at,
    ended_at = excluded.ended_at,
    undecided = excluded.undecided,
    decided_at = NULL,
    request = excluded.request
WHERE (excluded.asked_at, excluded.turn) > (parked_turns.asked_at, parked_turns.turn)

-- name: unpark_older
-- Removes the parked turn of a session that a newer turn continues. The queries below check that, too.
DELETE FROM parked_turns
WHERE tenant = :tenant AND session = :session AND (asked_at, turn) < (:asked_at, :turn)

-- name: unpark_turn
-- Removes a parked turn, before its row is deleted.
DELETE FROM parked_turns
WHERE tenant = :tenant AND session = (SELECT session FROM turns WHERE tenant = :tenant AND turn = :turn)
    AND turn = :turn

-- name: delete_decisions
-- Deletes the decisions about the calls of a turn, before its row is deleted.
DELETE FROM call_decisions
WHERE tenant = :tenant AND session = (SELECT session FROM turns WHERE tenant = :tenant AND turn = :turn)
    AND turn = :turn

-- fragment: is_last_turn
-- Whether a row of `parked_turns` is about the newest turn of its session.
NOT EXISTS (
    SELECT 1 FROM turns WHERE turns.tenant = :tenant AND turns.session = parked_turns.session
        AND (turns.asked_at, turns.turn) > (parked_turns.asked_at, parked_turns.turn)
)

-- name: parked_turn
-- The parked turn of a session, and the user of the session.
SELECT parked_turns.*, sessions."user" FROM parked_turns
{join} sessions ON sessions.tenant = :tenant AND sessions.session = parked_turns.session
WHERE parked_turns.tenant = :tenant AND parked_turns.session = :session AND {is_last_turn}

-- name: turn_decisions
-- The decisions about the calls of a turn.
SELECT call, decision, decided_by, decided_at FROM call_decisions
WHERE tenant = :tenant AND session = :session AND turn = :turn
ORDER BY decided_at

-- name: decided_call
-- The turn of the newest decision about a call of a session, which may be older than the parked turn.
SELECT call_decisions.turn, sessions."user" FROM call_decisions
{join} sessions ON sessions.tenant = :tenant AND sessions.session = call_decisions.session
WHERE call_decisions.tenant = :tenant AND call_decisions.session = :session AND call = :call
    AND (:turn IS NULL OR call_decisions.turn = :turn)
ORDER BY decided_at DESC LIMIT 1

-- name: follow_up
-- The first turn that continues another one.
SELECT turn FROM turns WHERE tenant = :tenant AND parent = :turn ORDER BY asked_at, turn LIMIT 1

-- name: put_decision
-- Stores the decision about a call, unless it has one.
INSERT INTO call_decisions (tenant, session, turn, call, decision, decided_by, decided_at)
VALUES (:tenant, :session, :turn, :call, :decision, :decided_by, :decided_at)
ON CONFLICT (tenant, session, turn, call) DO NOTHING

-- name: count_decision
-- Counts a decision about a call of a parked turn, and notes the time of the last one.
UPDATE parked_turns SET undecided = undecided - 1,
    decided_at = CASE WHEN undecided = 1 THEN :decided_at END
WHERE tenant = :tenant AND session = :session AND turn = :turn

-- fragment: parked_page
-- The columns of `page`: those of sessions, in the order of the time since which they wait.
sessions.tenant, sessions.session, project, "user", sessions.owner, title, model, system, created_at

-- name: parked_sessions
-- The sessions that require action, with totals, the last parked first; of one owner unless it is null.
WITH page AS (
    SELECT {parked_page}, parked_turns.ended_at AS updated_at FROM parked_turns
    {join} sessions ON sessions.tenant = :tenant AND sessions.session = parked_turns.session
    WHERE parked_turns.tenant = :tenant AND (parked_turns.ended_at, parked_turns.session) < (:before_at, :before)
        AND (:owner IS NULL OR sessions.owner = :owner) AND {is_last_turn}
    ORDER BY parked_turns.ended_at DESC, parked_turns.session DESC LIMIT :limit
)
{with_totals}

-- name: user_parked_sessions
-- The same, of one user.
WITH page AS (
    SELECT {parked_page}, updated_at FROM sessions
    {join} parked_turns ON parked_turns.tenant = :tenant AND parked_turns.session = sessions.session
    WHERE sessions.tenant = :tenant AND "user" = :user AND (updated_at, sessions.session) < (:before_at, :before)
        AND parked_turns.ended_at < :until_at AND (:owner IS NULL OR sessions.owner = :owner) AND {is_last_turn}
    ORDER BY updated_at DESC, sessions.session DESC LIMIT :limit
)
{with_totals}

-- fragment: by_decision
-- Otherwise SQLite would read the parked turns without all decisions, too.
INDEXED BY parked_decided

-- name: decided_turns
-- The parked turns of all tenants of which all calls are decided, after a session.
SELECT tenant, session, turn, decided_at FROM parked_turns {by_decision}
WHERE decided_at IS NOT NULL AND (tenant, session) > (:tenant, :session)
ORDER BY tenant, session LIMIT :limit
