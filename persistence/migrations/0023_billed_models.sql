-- The model that answered a turn, if it is not the requested one, and the usage and cost by model, as in the `end`.

ALTER TABLE turns ADD COLUMN answered_by TEXT;
ALTER TABLE turns ADD COLUMN by_model TEXT;

-- The last turn of each tenant whose usage and cost an older version has counted: without tokens beyond the top level
-- of a usage object, and without server tools.
CREATE TABLE older_costs (
    tenant   TEXT NOT NULL,
    asked_at INTEGER NOT NULL,
    PRIMARY KEY (tenant)
) STRICT, WITHOUT ROWID;

INSERT INTO older_costs SELECT tenant, max(asked_at) FROM totals WHERE dimension = 'day' GROUP BY tenant;

-- See 0020_statistics.sql.
INSERT INTO sqlite_stat1 (tbl, idx, stat) VALUES ('older_costs', 'older_costs', '100 1');

ANALYZE sqlite_schema;
