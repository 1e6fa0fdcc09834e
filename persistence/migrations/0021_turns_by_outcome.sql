-- The cancelled and failed turns in the order of their list. Completed turns, which are most, are not in it.

CREATE INDEX turns_cancelled_or_failed ON turns (tenant, outcome, asked_at, turn)
WHERE outcome IN ('cancelled', 'failed');

-- See 0020_statistics.sql.
INSERT INTO sqlite_stat1 (tbl, idx, stat) VALUES
    ('turns', 'turns_cancelled_or_failed', '1000000 100000 50000 1 1');

ANALYZE sqlite_schema;
