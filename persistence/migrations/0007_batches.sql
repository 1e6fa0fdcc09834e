-- How far a batch has come, as JSON: only a turn that is one has it. Of batches that were recorded before, nobody knows.

ALTER TABLE turns ADD COLUMN batch TEXT;

CREATE INDEX turns_batches ON turns (tenant, asked_at, turn) WHERE batch IS NOT NULL;
