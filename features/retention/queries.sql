-- The SQL statements of retention by age.

-- fragment: is_old
-- Whether a session was not used since a time, and the log has no turn of it any more. The cursors of turns that are
-- older than the log are those of another log.
updated_at < :unused_since AND NOT EXISTS (
    SELECT 1 FROM turns WHERE turns.tenant = sessions.tenant AND turns.session = sessions.session
        AND (
            turns.outcome = 'running'
            OR (turns.cursor >= :first AND coalesce(turns.ended_at, turns.asked_at) >= :log_created_at)
        )
)

-- name: old_sessions
-- Old sessions of all tenants.
SELECT tenant, session FROM sessions WHERE {is_old}
ORDER BY updated_at, tenant, session LIMIT :limit

-- name: old_session
-- A session if it is old.
SELECT session FROM sessions WHERE tenant = :tenant AND session = :session AND {is_old}
