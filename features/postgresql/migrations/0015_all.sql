-- The tables, indexes and triggers that migrations 0001 to 0015 make in SQLite; those files explain the columns.
-- Texts are compared by their bytes (COLLATE "C"), as in SQLite, so that lists have one order in any locale.

CREATE TABLE sessions (
    tenant     TEXT COLLATE "C" NOT NULL,
    session    TEXT COLLATE "C" NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    title      TEXT COLLATE "C",
    model      TEXT COLLATE "C",
    system     TEXT COLLATE "C",
    project    TEXT COLLATE "C",
    "user"     TEXT COLLATE "C",
    PRIMARY KEY (tenant, session)
);

CREATE INDEX sessions_by_update ON sessions (tenant, updated_at, session);
CREATE INDEX sessions_by_project ON sessions (tenant, project, updated_at, session);
CREATE INDEX sessions_by_user ON sessions (tenant, "user", updated_at, session) WHERE "user" IS NOT NULL;
CREATE INDEX sessions_by_age ON sessions (updated_at);

CREATE TABLE projects (
    tenant      TEXT COLLATE "C" NOT NULL,
    project     TEXT COLLATE "C" NOT NULL,
    name        TEXT COLLATE "C" NOT NULL,
    description TEXT COLLATE "C",
    created_at  BIGINT NOT NULL,
    PRIMARY KEY (tenant, project)
);

CREATE INDEX projects_by_creation ON projects (tenant, created_at, project);

CREATE TABLE turns (
    tenant          TEXT COLLATE "C" NOT NULL,
    turn            TEXT COLLATE "C" NOT NULL,
    session         TEXT COLLATE "C" NOT NULL,
    parent          TEXT COLLATE "C",
    model           TEXT COLLATE "C" NOT NULL,
    outcome         TEXT COLLATE "C" NOT NULL CHECK (outcome IN ('running', 'completed', 'cancelled', 'failed')),
    input           TEXT COLLATE "C" NOT NULL,
    content         TEXT COLLATE "C" NOT NULL,
    text            TEXT COLLATE "C" NOT NULL,
    stop_reason     TEXT COLLATE "C",
    error           TEXT COLLATE "C",
    attempts        BIGINT NOT NULL,
    metadata        TEXT COLLATE "C" NOT NULL,
    asked_at        BIGINT NOT NULL,
    ended_at        BIGINT,
    cursor          BIGINT NOT NULL,
    text_chars      BIGINT,
    text_sha256     TEXT COLLATE "C",
    stop_sequence   TEXT COLLATE "C",
    envelope        TEXT COLLATE "C" NOT NULL DEFAULT '{}',
    fits            BIGINT,
    batch           TEXT COLLATE "C",
    first_token_at  BIGINT,
    cost_is_unknown BIGINT NOT NULL DEFAULT 0,
    project         TEXT COLLATE "C",
    "user"          TEXT COLLATE "C",
    PRIMARY KEY (tenant, turn),
    FOREIGN KEY (tenant, session) REFERENCES sessions (tenant, session)
);

CREATE INDEX turns_by_session ON turns (tenant, session, asked_at, turn);
CREATE INDEX turns_by_parent ON turns (tenant, parent, turn);
CREATE INDEX turns_by_time ON turns (tenant, asked_at, turn);
CREATE INDEX turns_running ON turns (tenant, outcome, session) WHERE outcome = 'running';
CREATE INDEX turns_batches ON turns (tenant, asked_at, turn) WHERE batch IS NOT NULL;

CREATE TABLE usage (
    tenant                      TEXT COLLATE "C" NOT NULL,
    session                     TEXT COLLATE "C" NOT NULL,
    turn                        TEXT COLLATE "C" NOT NULL,
    input_tokens                BIGINT NOT NULL,
    output_tokens               BIGINT NOT NULL,
    cache_creation_input_tokens BIGINT NOT NULL,
    cache_read_input_tokens     BIGINT NOT NULL,
    is_estimated                BIGINT NOT NULL,
    cost_nusd                   BIGINT NOT NULL,
    messages                    BIGINT NOT NULL DEFAULT 0,
    model                       TEXT COLLATE "C" NOT NULL DEFAULT '',
    asked_at                    BIGINT NOT NULL DEFAULT 0,
    asked_by                    TEXT COLLATE "C",
    PRIMARY KEY (tenant, session, turn),
    FOREIGN KEY (tenant, turn) REFERENCES turns (tenant, turn)
);

CREATE INDEX usage_by_time ON usage (tenant, asked_at);

CREATE TABLE blob_uses (
    tenant TEXT COLLATE "C" NOT NULL,
    sha256 TEXT COLLATE "C" NOT NULL,
    turn   TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (tenant, sha256, turn)
);

CREATE INDEX blob_uses_by_turn ON blob_uses (tenant, turn, sha256);

CREATE TABLE blob_releases (
    tenant TEXT COLLATE "C" NOT NULL,
    sha256 TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (tenant, sha256)
);

CREATE TABLE reached (seq BIGINT NOT NULL);
INSERT INTO reached VALUES (0);

CREATE TABLE files (
    tenant     TEXT COLLATE "C" NOT NULL,
    file       TEXT COLLATE "C" NOT NULL,
    sha256     TEXT COLLATE "C" NOT NULL,
    bytes      BIGINT NOT NULL,
    filename   TEXT COLLATE "C" NOT NULL,
    media_type TEXT COLLATE "C" NOT NULL,
    purpose    TEXT COLLATE "C" NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT,
    PRIMARY KEY (tenant, file)
);

CREATE INDEX files_expiring ON files (expires_at) WHERE expires_at IS NOT NULL;

CREATE TABLE labels (
    tenant   TEXT COLLATE "C" NOT NULL,
    turn     TEXT COLLATE "C" NOT NULL,
    name     TEXT COLLATE "C" NOT NULL,
    value    TEXT COLLATE "C" NOT NULL,
    asked_at BIGINT NOT NULL,
    PRIMARY KEY (tenant, turn, name)
);

CREATE INDEX labels_by_value ON labels (tenant, name, value, asked_at, turn);

CREATE TABLE totals (
    tenant                      TEXT COLLATE "C" NOT NULL,
    dimension                   TEXT COLLATE "C" NOT NULL,
    key                         TEXT COLLATE "C" NOT NULL,
    day                         BIGINT NOT NULL,
    turns                       BIGINT NOT NULL,
    messages                    BIGINT NOT NULL,
    input_tokens                BIGINT NOT NULL,
    output_tokens               BIGINT NOT NULL,
    cache_creation_input_tokens BIGINT NOT NULL,
    cache_read_input_tokens     BIGINT NOT NULL,
    cost_nusd                   BIGINT NOT NULL,
    asked_at                    BIGINT NOT NULL,
    PRIMARY KEY (tenant, dimension, key, day)
);

CREATE INDEX totals_by_day ON totals (tenant, dimension, day, key);

CREATE TABLE session_counts (
    tenant   TEXT COLLATE "C" NOT NULL,
    project  TEXT COLLATE "C" NOT NULL,
    sessions BIGINT NOT NULL,
    PRIMARY KEY (tenant, project)
);

-- Counts a session in its tenant, whose project is '', and in its project.
CREATE FUNCTION tailrace_count_session() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        UPDATE session_counts SET sessions = sessions - 1
        WHERE tenant = old.tenant AND project IN ('', coalesce(old.project, ''));
        DELETE FROM session_counts
        WHERE tenant = old.tenant AND project IN ('', coalesce(old.project, '')) AND sessions = 0;
        RETURN NULL;
    END IF;
    IF TG_OP = 'INSERT' THEN
        INSERT INTO session_counts AS counted VALUES (new.tenant, '', 1)
        ON CONFLICT (tenant, project) DO UPDATE SET sessions = counted.sessions + 1;
    END IF;
    IF new.project IS NOT NULL THEN
        INSERT INTO session_counts AS counted VALUES (new.tenant, new.project, 1)
        ON CONFLICT (tenant, project) DO UPDATE SET sessions = counted.sessions + 1;
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER session_created AFTER INSERT ON sessions FOR EACH ROW EXECUTE FUNCTION tailrace_count_session();
CREATE TRIGGER session_deleted AFTER DELETE ON sessions FOR EACH ROW EXECUTE FUNCTION tailrace_count_session();
CREATE TRIGGER session_joined_project AFTER UPDATE OF project ON sessions FOR EACH ROW
WHEN (old.project IS NULL AND new.project IS NOT NULL) EXECUTE FUNCTION tailrace_count_session();
