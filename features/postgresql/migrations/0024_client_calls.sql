-- The same as 0024_client_calls.sql. PostgreSQL collects statistics itself.

CREATE TABLE parked_turns (
    tenant     TEXT COLLATE "C" NOT NULL,
    session    TEXT COLLATE "C" NOT NULL,
    turn       TEXT COLLATE "C" NOT NULL,
    asked_at   BIGINT NOT NULL,
    ended_at   BIGINT NOT NULL,
    undecided  BIGINT NOT NULL,
    decided_at BIGINT,
    request    TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (tenant, session)
);

CREATE INDEX parked_by_end ON parked_turns (tenant, ended_at, session);
CREATE INDEX parked_decided ON parked_turns (tenant, session) WHERE decided_at IS NOT NULL;

CREATE TABLE call_decisions (
    tenant     TEXT COLLATE "C" NOT NULL,
    session    TEXT COLLATE "C" NOT NULL,
    turn       TEXT COLLATE "C" NOT NULL,
    call       TEXT COLLATE "C" NOT NULL,
    decision   TEXT COLLATE "C" NOT NULL,
    decided_by TEXT COLLATE "C",
    decided_at BIGINT NOT NULL,
    PRIMARY KEY (tenant, session, turn, call)
);
