-- Webhooks that are about no turn: that a share of a budget is reached (features/limits). A row stays until
-- `expires_at`, so that each is made once. `next_at` is the time of the next attempt; NULL: it was sent, or given up.
CREATE TABLE notices (
    tenant     TEXT NOT NULL,
    notice     TEXT NOT NULL,
    body       TEXT NOT NULL,
    noted_at   INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    attempts   INTEGER NOT NULL,
    next_at    INTEGER,
    PRIMARY KEY (tenant, notice)
) STRICT, WITHOUT ROWID;

CREATE INDEX notices_by_expiry ON notices (tenant, expires_at);
CREATE INDEX notices_waiting ON notices (next_at) WHERE next_at IS NOT NULL;

-- See 0020_statistics.sql.
INSERT INTO sqlite_stat1 (tbl, idx, stat) VALUES
    ('notices', 'notices', '10000 1000 1'),
    ('notices', 'notices_by_expiry', '10000 1000 100'),
    ('notices', 'notices_waiting', '100 1');

ANALYZE sqlite_schema;
