-- The SQL statements of batches, which include fragments of persistence/queries.sql.

-- name: put_batch
-- Stores that a turn is a batch, with its counts, unless its row is that of another fold. Runs after put_turn.
UPDATE turns SET batch = :batch WHERE tenant = :tenant AND turn = :turn AND cursor = :cursor

-- fragment: batch_columns
-- The columns of a batch.
turn, session, outcome, error, metadata, asked_at, ended_at, batch, owner

-- fragment: by_batch
-- By the primary key SQLite would read all turns of the tenant.
INDEXED BY turns_batches

-- fragment: batch_api
-- The API through which a batch was created: `openai`, `anthropic`, or null for Tailrace's own.
CASE
    WHEN batch -> 'file' ->> 'file' IS NOT NULL THEN 'openai'
    WHEN batch -> 'file' ->> 'endpoint' = '/v1/messages' THEN 'anthropic'
END

-- name: batch
-- A turn that is a batch.
SELECT {batch_columns} FROM turns WHERE tenant = :tenant AND turn = :turn AND batch IS NOT NULL

-- fragment: of_page_of_batches
-- The batches before a cursor, newest first, of one owner unless it is null.
batch IS NOT NULL AND (:owner IS NULL OR owner = :owner) AND (asked_at, turn) < (:before_at, :before)
ORDER BY asked_at DESC, turn DESC LIMIT :limit

-- fragment: of_page_of_newer_batches
-- The batches after a cursor, oldest first, of one owner unless it is null.
batch IS NOT NULL AND (:owner IS NULL OR owner = :owner) AND (asked_at, turn) > (:after_at, :after)
ORDER BY asked_at, turn LIMIT :limit

-- name: batches
-- A page of batches, newest first.
SELECT {batch_columns} FROM turns {by_batch} WHERE tenant = :tenant AND {of_page_of_batches}

-- name: newer_batches
-- A page of batches, oldest first.
SELECT {batch_columns} FROM turns {by_batch} WHERE tenant = :tenant AND {of_page_of_newer_batches}

-- name: api_batches
-- A page of the batches of one API. A statement of its own, so that each has an index in the order of the page.
SELECT {batch_columns} FROM turns WHERE tenant = :tenant AND {batch_api} = :of AND {of_page_of_batches}

-- name: newer_api_batches
-- The same, oldest first.
SELECT {batch_columns} FROM turns WHERE tenant = :tenant AND {batch_api} = :of AND {of_page_of_newer_batches}

-- fragment: ended_batch
-- The batch of a turn, if it has ended.
SELECT turn FROM turns
WHERE tenant = :tenant AND turn = (SELECT parent FROM turns WHERE tenant = :tenant AND turn = :turn)
  AND batch IS NOT NULL AND outcome <> 'running'

-- name: release_batch_inputs
-- Releases the blobs of a turn's batch, if it has ended: its inputs, which only the results of a batch need then.
INSERT INTO blob_releases (tenant, sha256)
SELECT tenant, sha256 FROM blob_uses WHERE tenant = :tenant AND turn = ({ended_batch})
ON CONFLICT (tenant, sha256) DO NOTHING

-- name: delete_batch_input_uses
-- Deletes which blobs the ended batch of a turn refers to. Its turns refer to those that they need themselves.
DELETE FROM blob_uses WHERE tenant = :tenant AND turn = ({ended_batch})

-- name: running_batches
-- Some running batches of a tenant, of one user unless it is null.
SELECT turn, outcome FROM turns {by_running}
WHERE tenant = :tenant AND batch IS NOT NULL AND outcome = 'running' AND (:user IS NULL OR "user" = :user)
ORDER BY asked_at DESC, turn DESC LIMIT :limit
