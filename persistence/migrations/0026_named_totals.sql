-- Sums by UTC day of the turns that have a field of metadata, over all values of the field. The total of the day minus
-- this sum is the usage of turns without the field. Triggers keep it, so that it is also right after a process of an
-- older version has recorded a turn.
CREATE TABLE named_totals (
    tenant                      TEXT NOT NULL,
    dimension                   TEXT NOT NULL,
    day                         INTEGER NOT NULL, -- since 1970
    turns                       INTEGER NOT NULL,
    messages                    INTEGER NOT NULL,
    input_tokens                INTEGER NOT NULL,
    output_tokens               INTEGER NOT NULL,
    cache_creation_input_tokens INTEGER NOT NULL,
    cache_read_input_tokens     INTEGER NOT NULL,
    cost_nusd                   INTEGER NOT NULL,
    PRIMARY KEY (tenant, dimension, day)
) STRICT, WITHOUT ROWID;

INSERT INTO named_totals
SELECT tenant, dimension, day, sum(turns), sum(messages), sum(input_tokens), sum(output_tokens),
    sum(cache_creation_input_tokens), sum(cache_read_input_tokens), sum(cost_nusd)
FROM totals WHERE dimension > 'metadata.' AND dimension < 'metadata/' AND key <> ''
GROUP BY tenant, dimension, day;

CREATE TRIGGER named_total_added AFTER INSERT ON totals
WHEN new.dimension > 'metadata.' AND new.dimension < 'metadata/' AND new.key <> '' BEGIN
    INSERT INTO named_totals VALUES (
        new.tenant, new.dimension, new.day, new.turns, new.messages, new.input_tokens, new.output_tokens,
        new.cache_creation_input_tokens, new.cache_read_input_tokens, new.cost_nusd
    ) ON CONFLICT DO UPDATE SET
        turns = turns + excluded.turns,
        messages = messages + excluded.messages,
        input_tokens = input_tokens + excluded.input_tokens,
        output_tokens = output_tokens + excluded.output_tokens,
        cache_creation_input_tokens = cache_creation_input_tokens + excluded.cache_creation_input_tokens,
        cache_read_input_tokens = cache_read_input_tokens + excluded.cache_read_input_tokens,
        cost_nusd = cost_nusd + excluded.cost_nusd;
END;

CREATE TRIGGER named_total_changed AFTER UPDATE ON totals
WHEN new.dimension > 'metadata.' AND new.dimension < 'metadata/' AND new.key <> '' BEGIN
    UPDATE named_totals SET
        turns = turns + new.turns - old.turns,
        messages = messages + new.messages - old.messages,
        input_tokens = input_tokens + new.input_tokens - old.input_tokens,
        output_tokens = output_tokens + new.output_tokens - old.output_tokens,
        cache_creation_input_tokens
            = cache_creation_input_tokens + new.cache_creation_input_tokens - old.cache_creation_input_tokens,
        cache_read_input_tokens = cache_read_input_tokens + new.cache_read_input_tokens - old.cache_read_input_tokens,
        cost_nusd = cost_nusd + new.cost_nusd - old.cost_nusd
    WHERE tenant = new.tenant AND dimension = new.dimension AND day = new.day;
END;

-- The name of a field goes with the last turn that has it.
CREATE TRIGGER named_total_deleted AFTER DELETE ON totals
WHEN old.dimension > 'metadata.' AND old.dimension < 'metadata/' AND old.key <> '' BEGIN
    UPDATE named_totals SET
        turns = turns - old.turns,
        messages = messages - old.messages,
        input_tokens = input_tokens - old.input_tokens,
        output_tokens = output_tokens - old.output_tokens,
        cache_creation_input_tokens = cache_creation_input_tokens - old.cache_creation_input_tokens,
        cache_read_input_tokens = cache_read_input_tokens - old.cache_read_input_tokens,
        cost_nusd = cost_nusd - old.cost_nusd
    WHERE tenant = old.tenant AND dimension = old.dimension AND day = old.day;
    DELETE FROM named_totals
    WHERE tenant = old.tenant AND dimension = old.dimension AND day = old.day AND NOT EXISTS (
        SELECT 1 FROM totals
        WHERE tenant = old.tenant AND dimension = old.dimension AND day = old.day AND key > ''
    );
END;

-- See 0020_statistics.sql.
INSERT INTO sqlite_stat1 (tbl, idx, stat) VALUES ('named_totals', 'named_totals', '100000 10000 30 1');

ANALYZE sqlite_schema;
