-- Turns, the sessions that they belong to, and what each has used.
-- Times are whole microseconds since 1970, UTC. JSON is text. The tenant is the first column of every key, so that
-- nothing can be found without naming whose it is.

CREATE TABLE sessions (
    tenant     TEXT NOT NULL,
    session    TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL, -- when a turn of it was last asked or ended
    PRIMARY KEY (tenant, session)
) STRICT, WITHOUT ROWID;

CREATE INDEX sessions_by_update ON sessions (tenant, updated_at, session);

CREATE TABLE turns (
    tenant      TEXT NOT NULL,
    turn        TEXT NOT NULL,
    session     TEXT NOT NULL,
    parent      TEXT, -- no foreign key: a database made anew from the log may not reach back to it
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
    cursor      INTEGER NOT NULL, -- the sequence of the last entry that this row knows of
    text_chars  INTEGER, -- what the turn's end says of its text, so that an audit can prove the row
    text_sha256 TEXT,
    PRIMARY KEY (tenant, turn),
    FOREIGN KEY (tenant, session) REFERENCES sessions (tenant, session)
) STRICT;

CREATE INDEX turns_by_session ON turns (tenant, session, asked_at, turn);

-- Beside `turns`, not in it: the totals of a session are one short range of narrow rows, and no text is read for them.
CREATE TABLE usage (
    tenant                      TEXT NOT NULL,
    session                     TEXT NOT NULL,
    turn                        TEXT NOT NULL,
    input_tokens                INTEGER NOT NULL,
    output_tokens               INTEGER NOT NULL,
    cache_creation_input_tokens INTEGER NOT NULL,
    cache_read_input_tokens     INTEGER NOT NULL,
    is_estimated                INTEGER NOT NULL, -- 1: a call broke off before the model had counted its output
    cost_nusd                   INTEGER NOT NULL, -- billionths of a dollar
    PRIMARY KEY (tenant, session, turn),
    FOREIGN KEY (tenant, turn) REFERENCES turns (tenant, turn)
) STRICT, WITHOUT ROWID;
