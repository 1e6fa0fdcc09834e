-- The progress of a batch as JSON; NULL for other turns, and for batches that were recorded earlier.

ALTER TABLE turns ADD COLUMN batch TEXT;

CREATE INDEX turns_batches ON turns (tenant, asked_at, turn) WHERE batch IS NOT NULL;
