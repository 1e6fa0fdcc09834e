-- The batches of one API and the files with one purpose, in the order of their lists: a tenant may have many others.
-- The expression is the fragment `batch_api` of queries.sql.

CREATE INDEX turns_batches_by_api ON turns (tenant, CASE
    WHEN batch -> 'file' ->> 'file' IS NOT NULL THEN 'openai'
    WHEN batch -> 'file' ->> 'endpoint' = '/v1/messages' THEN 'anthropic'
END, asked_at, turn) WHERE batch IS NOT NULL;

CREATE INDEX files_by_purpose ON files (tenant, purpose, file);

-- See 0020_statistics.sql.
INSERT INTO sqlite_stat1 (tbl, idx, stat) VALUES
    ('files', 'files_by_purpose', '100000 10000 1000 1'),
    ('turns', 'turns_batches_by_api', '10000 1000 300 1 1');

ANALYZE sqlite_schema;
