-- The databases look up the usage of each turn whose row is deleted, because it refers to that row. Without this index
-- they read the usage of all turns of the tenant.

CREATE INDEX usage_by_turn ON usage (tenant, turn);
