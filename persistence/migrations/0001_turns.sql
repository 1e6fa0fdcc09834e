-- Turns, their sessions, and the usage of each turn.
-- Times are whole microseconds since 1970, UTC. JSON is text. The tenant is the first column of every key, so that
-- every query has to name it.

CREATE TABLE sessions (
    tenant     TEXT NOT NULL,
    session    TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL, -- when its last turn was requested or ended
    PRIMARY KEY (tenant, session)
) STRICT, WITHOUT ROWID;

CREATE INDEX sessions_by_update ON sessions (tenant, updated_at, session);

CREATE TABLE turns (
    tenant      TEXT NOT NULL,
    turn        TEXT NOT NULL,
    session     TEXT NOT NULL,
    parent      TEXT, -- no foreign key: a database rebuilt from the log may lack older turns
    model       TEXT NOT NULL,
    outcome     TEXT NOT NULL CHECK (outcome IN ('running', 'completed', 'cancelled', 'failed')),
    input       TEXT NOT NULL, -- JSON: the messages that this turn added to its session
    content     TEXT NOT NULL, -- JSON: the answer's content blocks
    text        TEXT NOT NULL,
    stop_reason TEXT,
    error       TEXT, -- JSON: code and message
    attempts    INTEGER NOT NULL,
    metadata    TEXT NOT NULL, -- JSON
    asked_at    INTEGER NOT NULL,
    ended_at    INTEGER,
    cursor      INTEGER NOT NULL, -- the sequence of the last entry in this row's fold
    text_chars  INTEGER, -- length and hash in the turn's end, by which an audit can verify the text
    text_sha256 TEXT,
    PRIMARY KEY (tenant, turn),
    FOREIGN KEY (tenant, session) REFERENCES sessions (tenant, session)
) STRICT;

CREATE INDEX turns_by_session ON turns (tenant, session, asked_at, turn);

-- A table of its own: the totals of a session are read from a short range of narrow rows, without any text.
CREATE TABLE usage (
    tenant                      TEXT NOT NULL,
    session                     TEXT NOT NULL,
    turn                        TEXT NOT NULL,
    input_tokens                INTEGER NOT NULL,
    output_tokens               INTEGER NOT NULL,
    cache_creation_input_tokens INTEGER NOT NULL,
    cache_read_input_tokens     INTEGER NOT NULL,
    is_estimated                INTEGER NOT NULL, -- 1: a call was interrupted before the model reported its output tokens
    cost_nusd                   INTEGER NOT NULL, -- billionths of a dollar
    PRIMARY KEY (tenant, session, turn),
    FOREIGN KEY (tenant, turn) REFERENCES turns (tenant, turn)
) STRICT, WITHOUT ROWID;
