-- The same as 0023_billed_models.sql. PostgreSQL collects statistics itself.

ALTER TABLE turns ADD COLUMN answered_by TEXT COLLATE "C";
ALTER TABLE turns ADD COLUMN by_model TEXT COLLATE "C";

CREATE TABLE older_costs (
    tenant   TEXT COLLATE "C" NOT NULL,
    asked_at BIGINT NOT NULL,
    PRIMARY KEY (tenant)
);

INSERT INTO older_costs SELECT tenant, max(asked_at) FROM totals WHERE dimension = 'day' GROUP BY tenant;
