-- The same as 0022_lists.sql.

-- A function, because the cast to JSON is not immutable, as the expression of an index has to be.
CREATE FUNCTION tailrace_batch_api(batch TEXT) RETURNS TEXT LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
    RETURN CASE
        WHEN batch::json -> 'file' ->> 'file' IS NOT NULL THEN 'openai'
        WHEN batch::json -> 'file' ->> 'endpoint' = '/v1/messages' THEN 'anthropic'
    END;
END
$$;

CREATE INDEX turns_batches_by_api ON turns (tenant, tailrace_batch_api(batch), asked_at, turn) WHERE batch IS NOT NULL;
CREATE INDEX files_by_purpose ON files (tenant, purpose, file);
