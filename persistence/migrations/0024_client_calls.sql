-- Calls of client tools that wait for a decision (features/client_calls).

-- The last turn of a session, if it was completed with calls: the request without its messages, for the turn after it.
-- `decided_at` is the time of the last decision when all calls have one.
CREATE TABLE parked_turns (
    tenant     TEXT NOT NULL,
    session    TEXT NOT NULL,
    turn       TEXT NOT NULL,
    asked_at   INTEGER NOT NULL,
    ended_at   INTEGER NOT NULL,
    undecided  INTEGER NOT NULL,
    decided_at INTEGER,
    request    TEXT NOT NULL,
    PRIMARY KEY (tenant, session)
) STRICT, WITHOUT ROWID;

CREATE INDEX parked_by_end ON parked_turns (tenant, ended_at, session);
CREATE INDEX parked_decided ON parked_turns (tenant, session) WHERE decided_at IS NOT NULL;

CREATE TABLE call_decisions (
    tenant     TEXT NOT NULL,
    session    TEXT NOT NULL,
    turn       TEXT NOT NULL,
    call       TEXT NOT NULL,
    decision   TEXT NOT NULL,
    decided_by TEXT,
    decided_at INTEGER NOT NULL,
    PRIMARY KEY (tenant, session, turn, call)
) STRICT, WITHOUT ROWID;

-- See 0020_statistics.sql.
INSERT INTO sqlite_stat1 (tbl, idx, stat) VALUES
    ('parked_turns', 'parked_turns', '10000 1000 1'),
    ('parked_turns', 'parked_by_end', '10000 1000 1 1'),
    ('parked_turns', 'parked_decided', '10 5 1'),
    ('call_decisions', 'call_decisions', '100000 10000 3 1 1');

ANALYZE sqlite_schema;
