-- The SQL statements of budgets.

-- fragment: cost_of_tenant
-- The cost of the turns of some days.
SELECT coalesce(sum(cost_nusd), 0) AS spent FROM totals
WHERE tenant = :tenant AND dimension = 'day' AND day BETWEEN :first AND :last

-- fragment: cost_of_key
-- The cost of the turns of the credentials that share a budget.
SELECT coalesce(sum(cost_nusd), 0) AS spent FROM budget_keys
{join} totals ON totals.tenant = :tenant AND dimension = 'key' AND totals.key = budget_keys.key
    AND day BETWEEN :first AND :last
WHERE budget_keys.tenant = :tenant AND budget_keys.owner = :owner

-- fragment: turns_of_budget
-- The turns that hold a budget or have ended after :since, with the amount that is left of a batch; one row without any.
LEFT JOIN (
    SELECT turn, seq, asked_at, ended_at, cost_nusd, amount - (
        SELECT coalesce(sum(part.amount), 0) FROM reservations AS part
        WHERE part.tenant = :tenant AND part.subject = :subject AND part.batch = held.turn
    ) AS amount
    FROM reservations AS held
    WHERE tenant = :tenant AND subject = :subject AND (ended_at IS NULL OR ended_at > :since)
) AS turns_held ON true

-- name: budget_of_tenant
-- The budget of a tenant at one moment.
SELECT * FROM ({cost_of_tenant}) AS found {turns_of_budget}

-- name: budget_of_key
-- The budget of a key at one moment.
SELECT * FROM ({cost_of_key}) AS found {turns_of_budget}

-- name: put_reservations
-- Stores what a turn has reserved, and its end: `held` is a JSON list of [subject, amount, seq, 1 if the cost counts
-- in its period, 0 if it counts in another one, null if its turns are settled and not it].
INSERT INTO reservations (tenant, subject, turn, batch, amount, seq, asked_at, ended_at, cost_nusd, kept_until)
SELECT :tenant, value ->> 0, :turn, :batch, CAST(value ->> 1 AS BIGINT), CAST(value ->> 2 AS BIGINT), :asked_at,
    :ended_at, CAST(value ->> 3 AS BIGINT) * :cost_nusd, :kept_until
FROM {lists}(:held{as_json}) AS written WHERE true
ON CONFLICT (tenant, subject, turn) DO UPDATE SET
    ended_at = excluded.ended_at,
    cost_nusd = excluded.cost_nusd
WHERE excluded.ended_at IS NOT NULL

-- name: put_budget_keys
-- Notes that a credential has used the budgets of owners: `owners` is a JSON list.
INSERT INTO budget_keys (tenant, owner, key) SELECT :tenant, value, :key FROM {texts}(:owners{as_json}) WHERE true
ON CONFLICT (tenant, owner, key) DO NOTHING

-- name: unsure_reservations
-- Some turns of all tenants that hold a budget and do not run here, other ones each time.
SELECT tenant, turn, max(kept_until) AS kept_until FROM reservations
WHERE ended_at IS NULL AND NOT EXISTS (
    SELECT 1 FROM turns WHERE turns.tenant = reservations.tenant AND turns.turn = reservations.turn
        AND outcome = 'running'
)
GROUP BY tenant, turn ORDER BY random() LIMIT :limit

-- name: end_reservations
-- Ends the reservations of a turn.
UPDATE reservations SET ended_at = :ended_at WHERE tenant = :tenant AND turn = :turn AND ended_at IS NULL

-- name: delete_ended_reservations
-- Deletes the reservations of turns of all tenants that have ended before a time. Those of a batch go together.
DELETE FROM reservations WHERE ended_at < :oldest_at AND NOT EXISTS (
    SELECT 1 FROM reservations AS whole
    WHERE whole.tenant = reservations.tenant AND whole.subject = reservations.subject
        AND whole.turn = reservations.batch
)

-- name: delete_reservations
-- Deletes the reservations of a tenant.
DELETE FROM reservations WHERE tenant = :tenant AND subject > ''

-- name: delete_budget_keys
-- Deletes the credentials of the budgets of a tenant.
DELETE FROM budget_keys WHERE tenant = :tenant AND owner > ''

-- name: running_of_listed
-- Those of some turns that run: `listed` is a JSON list.
SELECT turn FROM turns WHERE tenant = :tenant AND turn IN (SELECT value FROM {texts}(:listed{as_json}))
    AND outcome = 'running'

-- name: put_notice
-- Stores a webhook about a budget; changes nothing if it was stored before.
INSERT INTO notices (tenant, notice, body, noted_at, expires_at, attempts, next_at)
VALUES (:tenant, :notice, :body, :noted_at, :expires_at, 0, :noted_at)
ON CONFLICT (tenant, notice) DO NOTHING

-- name: reached_budgets
-- The newest webhooks about budgets of all tenants in periods that have not ended.
SELECT body FROM notices WHERE notice LIKE 'budget%' AND expires_at > :now ORDER BY noted_at DESC LIMIT :limit

-- name: delete_old_notices
-- Deletes the webhooks about budgets of earlier periods.
DELETE FROM notices WHERE tenant = :tenant AND expires_at < :noted_at

-- name: delete_notices
-- Deletes all webhooks about budgets of a tenant.
DELETE FROM notices WHERE tenant = :tenant AND expires_at >= 0
