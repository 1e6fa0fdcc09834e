-- Users of turns and sessions, labels that lists filter by, and totals by day: a list or a total reads as many rows at a
-- million turns as at a thousand.

ALTER TABLE turns ADD COLUMN user TEXT; -- the end user that the request named, or NULL
ALTER TABLE sessions ADD COLUMN user TEXT; -- the first user that a turn named

CREATE INDEX turns_by_time ON turns (tenant, asked_at, turn);
CREATE INDEX sessions_by_user ON sessions (tenant, user, updated_at, session) WHERE user IS NOT NULL;

-- What turns are found by: `model`, `key`, `user`, and `metadata.NAME`.
CREATE TABLE labels (
    tenant   TEXT NOT NULL,
    turn     TEXT NOT NULL,
    name     TEXT NOT NULL,
    value    TEXT NOT NULL,
    asked_at INTEGER NOT NULL,
    PRIMARY KEY (tenant, turn, name)
) STRICT, WITHOUT ROWID;

CREATE INDEX labels_by_value ON labels (tenant, name, value, asked_at, turn);

INSERT OR IGNORE INTO labels SELECT tenant, turn, 'model', model, asked_at FROM usage;
INSERT OR IGNORE INTO labels SELECT tenant, turn, 'key', asked_by, asked_at FROM usage WHERE asked_by IS NOT NULL;
-- SQLite cuts a name at a NUL character, so two names of one turn may be the same label.
INSERT OR IGNORE INTO labels
SELECT turns.tenant, turns.turn, 'metadata.' || field.key, field.value, turns.asked_at
FROM turns JOIN json_each(turns.metadata) AS field
WHERE turns.metadata <> '{}' AND length(field.key) <= 64 AND length(field.value) <= 512
    AND (SELECT count(*) FROM json_each(turns.metadata) AS earlier WHERE earlier.id < field.id) < 16;

-- Sums of usage by UTC day, for each dimension: `day`, `session`, `project`, and the names of labels. The key is '' for
-- turns without one, and in `session` for deleted turns.
CREATE TABLE totals (
    tenant                      TEXT NOT NULL,
    dimension                   TEXT NOT NULL,
    key                         TEXT NOT NULL,
    day                         INTEGER NOT NULL, -- since 1970
    turns                       INTEGER NOT NULL,
    messages                    INTEGER NOT NULL,
    input_tokens                INTEGER NOT NULL,
    output_tokens               INTEGER NOT NULL,
    cache_creation_input_tokens INTEGER NOT NULL,
    cache_read_input_tokens     INTEGER NOT NULL,
    cost_nusd                   INTEGER NOT NULL,
    asked_at                    INTEGER NOT NULL, -- of the last turn
    PRIMARY KEY (tenant, dimension, key, day)
) STRICT, WITHOUT ROWID;

CREATE INDEX totals_by_day ON totals (tenant, dimension, day, key);

CREATE TEMP TABLE counted AS
SELECT usage.tenant, usage.session, coalesce(sessions.project, '') AS project, usage.model,
    coalesce(usage.asked_by, '') AS asked_by, usage.asked_at, usage.turn, messages,
    input_tokens, output_tokens, cache_creation_input_tokens, cache_read_input_tokens, cost_nusd
FROM usage JOIN sessions ON sessions.tenant = usage.tenant AND sessions.session = usage.session
UNION ALL
SELECT tenant, '', coalesce(project, ''), model, coalesce(asked_by, ''), asked_at, NULL, messages,
    input_tokens, output_tokens, cache_creation_input_tokens, cache_read_input_tokens, cost_nusd
FROM deleted_usage;

INSERT INTO totals
SELECT tenant, dimension, key, asked_at / 86400000000, count(*), sum(messages), sum(input_tokens), sum(output_tokens),
    sum(cache_creation_input_tokens), sum(cache_read_input_tokens), sum(cost_nusd), max(asked_at)
FROM (
    SELECT *, 'day' AS dimension, date(asked_at / 1000000, 'unixepoch') AS key FROM counted
    UNION ALL SELECT *, 'session', session FROM counted
    UNION ALL SELECT *, 'project', project FROM counted
    UNION ALL SELECT *, 'model', model FROM counted
    UNION ALL SELECT *, 'key', asked_by FROM counted
    UNION ALL SELECT *, 'user', '' FROM counted
    UNION ALL SELECT counted.*, labels.name, labels.value FROM counted JOIN labels USING (tenant, turn)
    WHERE labels.name > 'metadata.' AND labels.name < 'metadata/'
)
GROUP BY tenant, dimension, key, asked_at / 86400000000;

DROP TABLE counted;
DROP TABLE deleted_usage;

-- The number of sessions of a project; of all of a tenant under ''.
CREATE TABLE session_counts (
    tenant   TEXT NOT NULL,
    project  TEXT NOT NULL,
    sessions INTEGER NOT NULL,
    PRIMARY KEY (tenant, project)
) STRICT, WITHOUT ROWID;

INSERT INTO session_counts SELECT tenant, '', count(*) FROM sessions GROUP BY tenant;
INSERT INTO session_counts SELECT tenant, project, count(*) FROM sessions WHERE project IS NOT NULL GROUP BY 1, 2;

CREATE TRIGGER session_created AFTER INSERT ON sessions BEGIN
    INSERT INTO session_counts SELECT new.tenant, value, 1 FROM json_each(json_array('', new.project))
    WHERE value IS NOT NULL ON CONFLICT DO UPDATE SET sessions = sessions + 1;
END;

CREATE TRIGGER session_deleted AFTER DELETE ON sessions BEGIN
    UPDATE session_counts SET sessions = sessions - 1
    WHERE tenant = old.tenant AND project IN ('', coalesce(old.project, ''));
    DELETE FROM session_counts
    WHERE tenant = old.tenant AND project IN ('', coalesce(old.project, '')) AND sessions = 0;
END;

-- A session gets its project with a later turn.
CREATE TRIGGER session_joined_project AFTER UPDATE OF project ON sessions
WHEN old.project IS NULL AND new.project IS NOT NULL BEGIN
    INSERT INTO session_counts VALUES (new.tenant, new.project, 1) ON CONFLICT DO UPDATE SET sessions = sessions + 1;
END;
