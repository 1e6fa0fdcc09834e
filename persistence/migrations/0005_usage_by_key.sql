-- The id of the API key or user of a turn, which is not a secret, for totals by key.
-- NULL for turns that were recorded earlier.

ALTER TABLE usage ADD COLUMN asked_by TEXT;
