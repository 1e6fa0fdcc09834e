-- The same as 0029_reservations.sql. PostgreSQL collects statistics itself.

CREATE TABLE reservations (
    tenant     TEXT COLLATE "C" NOT NULL,
    subject    TEXT COLLATE "C" NOT NULL,
    turn       TEXT COLLATE "C" NOT NULL,
    batch      TEXT COLLATE "C",
    amount     BIGINT NOT NULL,
    seq        BIGINT NOT NULL,
    asked_at   BIGINT NOT NULL,
    ended_at   BIGINT,
    cost_nusd  BIGINT,
    kept_until BIGINT,
    PRIMARY KEY (tenant, subject, turn)
);

CREATE INDEX reservations_by_batch ON reservations (tenant, subject, batch) WHERE batch IS NOT NULL;
CREATE INDEX reservations_by_end ON reservations (ended_at, tenant, turn);

CREATE TABLE budget_keys (
    tenant TEXT COLLATE "C" NOT NULL,
    owner  TEXT COLLATE "C" NOT NULL,
    key    TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (tenant, owner, key)
);
