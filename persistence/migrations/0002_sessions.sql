-- Titles of sessions, projects, and totals by day, model and project.
-- Titles, descriptions and a session's defaults are only in the database: the log does not have them.

ALTER TABLE sessions ADD COLUMN title TEXT;
ALTER TABLE sessions ADD COLUMN model TEXT; -- for turns that name none
ALTER TABLE sessions ADD COLUMN system TEXT; -- JSON: text or blocks, for turns that name none
ALTER TABLE sessions ADD COLUMN project TEXT; -- the first one that a turn named

CREATE INDEX sessions_by_project ON sessions (tenant, project, updated_at, session);

CREATE TABLE projects (
    tenant      TEXT NOT NULL,
    project     TEXT NOT NULL,
    name        TEXT NOT NULL,
    description TEXT,
    created_at  INTEGER NOT NULL,
    PRIMARY KEY (tenant, project)
) STRICT, WITHOUT ROWID;

CREATE INDEX projects_by_creation ON projects (tenant, created_at, project);

-- Columns for totals besides the tokens, so that no text is read for them.
ALTER TABLE usage ADD COLUMN messages INTEGER NOT NULL DEFAULT 0; -- the turn's new messages and its answer
ALTER TABLE usage ADD COLUMN model TEXT NOT NULL DEFAULT '';
ALTER TABLE usage ADD COLUMN asked_at INTEGER NOT NULL DEFAULT 0;
UPDATE usage SET (messages, model, asked_at) = (
    SELECT json_array_length(turns.input) + (turns.content <> '[]'), turns.model, turns.asked_at
    FROM turns WHERE turns.tenant = usage.tenant AND turns.turn = usage.turn
);

CREATE INDEX usage_by_time ON usage (tenant, asked_at);

-- To find the follow-ups of a turn, and running turns.
CREATE INDEX turns_by_parent ON turns (tenant, parent, turn);
CREATE INDEX turns_running ON turns (tenant, outcome, session) WHERE outcome = 'running';
