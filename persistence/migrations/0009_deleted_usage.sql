-- The usage of deleted turns, for the totals of their tenant and project. One row a turn, without its id, its session
-- and its text.

CREATE TABLE deleted_usage (
    tenant                      TEXT NOT NULL,
    asked_at                    INTEGER NOT NULL,
    project                     TEXT, -- NULL when there was none, or it was deleted, too
    model                       TEXT NOT NULL,
    asked_by                    TEXT,
    messages                    INTEGER NOT NULL,
    input_tokens                INTEGER NOT NULL,
    output_tokens               INTEGER NOT NULL,
    cache_creation_input_tokens INTEGER NOT NULL,
    cache_read_input_tokens     INTEGER NOT NULL,
    cost_nusd                   INTEGER NOT NULL
) STRICT;

CREATE INDEX deleted_usage_by_time ON deleted_usage (tenant, asked_at);
CREATE INDEX deleted_usage_by_project ON deleted_usage (tenant, project);
