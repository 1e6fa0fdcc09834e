-- The SQL statements of turns with `store: false`.

-- name: put_unstored
-- Notes a turn with `store: false`, so that an erasure of its user finds it.
INSERT INTO unstored (tenant, turn, user_hash) VALUES (:tenant, :turn, :user_hash)
ON CONFLICT (tenant, turn) DO NOTHING

-- name: user_unstored
-- Some turns of a user with `store: false`.
SELECT turn FROM unstored WHERE tenant = :tenant AND user_hash = :user_hash LIMIT :limit

-- name: tenant_unstored
-- Some turns of a tenant with `store: false`.
SELECT turn FROM unstored WHERE tenant = :tenant AND turn >= '' LIMIT :limit

-- name: every_unstored
-- Turns of all tenants with `store: false` after one of them.
SELECT tenant, turn FROM unstored WHERE (tenant, turn) > (:tenant, :turn) ORDER BY tenant, turn LIMIT :limit

-- name: forget_unstored
-- Removes the note of a turn with `store: false`, because it is erased, or has left the log.
DELETE FROM unstored WHERE tenant = :tenant AND turn = :turn
