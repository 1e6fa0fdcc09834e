-- Which credential asked, by its name, which is no secret: totals by key.
-- Of turns that were recorded before, nobody knows.

ALTER TABLE usage ADD COLUMN asked_by TEXT;
