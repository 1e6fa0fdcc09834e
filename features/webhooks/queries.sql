-- The SQL statements of webhooks that are about no turn.

-- name: waiting_notices
-- The webhooks of all tenants whose next attempt is due, the oldest first.
SELECT tenant, notice, body, noted_at, attempts, next_at FROM notices
WHERE next_at IS NOT NULL AND next_at <= :now ORDER BY next_at LIMIT :limit

-- name: set_notice_attempts
-- Stores the number of attempts and the time of the next one; NULL: there is none.
UPDATE notices SET attempts = :attempts, next_at = :next_at WHERE tenant = :tenant AND notice = :notice
