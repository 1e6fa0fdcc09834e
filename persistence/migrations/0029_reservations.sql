-- What turns have reserved of budgets (features/limits): a row for each turn and counter, from the turn's request until
-- some minutes after its end. `seq` is the sequence of the increment; 0: not known. A turn of a batch takes its amount
-- out of that of its batch. A batch with `kept_until` may store turns after its end, until then.
CREATE TABLE reservations (
    tenant     TEXT NOT NULL,
    subject    TEXT NOT NULL,
    turn       TEXT NOT NULL,
    batch      TEXT,
    amount     INTEGER NOT NULL,
    seq        INTEGER NOT NULL,
    asked_at   INTEGER NOT NULL,
    ended_at   INTEGER,
    cost_nusd  INTEGER, -- as far as it counts in the period of the counter; NULL: a batch, whose turns are settled
    kept_until INTEGER,
    PRIMARY KEY (tenant, subject, turn)
) STRICT, WITHOUT ROWID;

CREATE INDEX reservations_by_batch ON reservations (tenant, subject, batch) WHERE batch IS NOT NULL;
CREATE INDEX reservations_by_end ON reservations (ended_at, tenant, turn);

-- The credentials that have used the budget of an owner, whose name in the subjects of counters is a hash.
CREATE TABLE budget_keys (
    tenant TEXT NOT NULL,
    owner  TEXT NOT NULL,
    key    TEXT NOT NULL,
    PRIMARY KEY (tenant, owner, key)
) STRICT, WITHOUT ROWID;

-- See 0020_statistics.sql.
INSERT INTO sqlite_stat1 (tbl, idx, stat) VALUES
    ('reservations', 'reservations', '100000 10000 1000 1'),
    ('reservations', 'reservations_by_batch', '10000 1000 100 10'),
    ('reservations', 'reservations_by_end', '100000 10 5 2'),
    ('budget_keys', 'budget_keys', '10000 1000 2 1');

ANALYZE sqlite_schema;
