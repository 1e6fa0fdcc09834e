-- The same as 0027_notices.sql. PostgreSQL collects statistics itself.

CREATE TABLE notices (
    tenant     TEXT COLLATE "C" NOT NULL,
    notice     TEXT COLLATE "C" NOT NULL,
    body       TEXT COLLATE "C" NOT NULL,
    noted_at   BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    attempts   BIGINT NOT NULL,
    next_at    BIGINT,
    PRIMARY KEY (tenant, notice)
);

CREATE INDEX notices_by_expiry ON notices (tenant, expires_at);
CREATE INDEX notices_waiting ON notices (next_at) WHERE next_at IS NOT NULL;
