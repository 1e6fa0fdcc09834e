-- The SQL statements of budgets.

-- name: spent_of_tenant
-- The cost of the turns of some days.
SELECT coalesce(sum(cost_nusd), 0) AS spent FROM totals
WHERE tenant = :tenant AND dimension = 'day' AND day BETWEEN :first AND :last

-- name: spent_of_keys
-- The cost of the turns of some API keys on some days: `listed` is a JSON list of their ids.
SELECT coalesce(sum(cost_nusd), 0) AS spent FROM {texts}(:listed{as_json}) AS written
{join} totals ON tenant = :tenant AND dimension = 'key' AND totals.key = written.value AND day BETWEEN :first AND :last

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
