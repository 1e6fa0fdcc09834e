-- The same as 0026_named_totals.sql. PostgreSQL collects statistics itself.

CREATE TABLE named_totals (
    tenant                      TEXT COLLATE "C" NOT NULL,
    dimension                   TEXT COLLATE "C" NOT NULL,
    day                         BIGINT NOT NULL,
    turns                       BIGINT NOT NULL,
    messages                    BIGINT NOT NULL,
    input_tokens                BIGINT NOT NULL,
    output_tokens               BIGINT NOT NULL,
    cache_creation_input_tokens BIGINT NOT NULL,
    cache_read_input_tokens     BIGINT NOT NULL,
    cost_nusd                   BIGINT NOT NULL,
    PRIMARY KEY (tenant, dimension, day)
);

INSERT INTO named_totals
SELECT tenant, dimension, day, sum(turns), sum(messages), sum(input_tokens), sum(output_tokens),
    sum(cache_creation_input_tokens), sum(cache_read_input_tokens), sum(cost_nusd)
FROM totals WHERE dimension > 'metadata.' AND dimension < 'metadata/' AND key <> ''
GROUP BY tenant, dimension, day;

CREATE FUNCTION tailrace_count_named(total totals, sign INTEGER) RETURNS void LANGUAGE sql AS $$
    INSERT INTO named_totals AS counted VALUES (
        total.tenant, total.dimension, total.day, sign * total.turns, sign * total.messages, sign * total.input_tokens,
        sign * total.output_tokens, sign * total.cache_creation_input_tokens, sign * total.cache_read_input_tokens,
        sign * total.cost_nusd
    ) ON CONFLICT (tenant, dimension, day) DO UPDATE SET
        turns = counted.turns + excluded.turns,
        messages = counted.messages + excluded.messages,
        input_tokens = counted.input_tokens + excluded.input_tokens,
        output_tokens = counted.output_tokens + excluded.output_tokens,
        cache_creation_input_tokens = counted.cache_creation_input_tokens + excluded.cache_creation_input_tokens,
        cache_read_input_tokens = counted.cache_read_input_tokens + excluded.cache_read_input_tokens,
        cost_nusd = counted.cost_nusd + excluded.cost_nusd
$$;

CREATE FUNCTION tailrace_count_named_total() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'INSERT' THEN
        PERFORM tailrace_count_named(old, -1);
    END IF;
    IF TG_OP <> 'DELETE' THEN
        PERFORM tailrace_count_named(new, 1);
        RETURN NULL;
    END IF;
    DELETE FROM named_totals
    WHERE tenant = old.tenant AND dimension = old.dimension AND day = old.day AND NOT EXISTS (
        SELECT 1 FROM totals
        WHERE tenant = old.tenant AND dimension = old.dimension AND day = old.day AND key > ''
    );
    RETURN NULL;
END
$$;

CREATE TRIGGER named_total_changed AFTER INSERT OR UPDATE ON totals FOR EACH ROW
WHEN (new.dimension > 'metadata.' AND new.dimension < 'metadata/' AND new.key <> '')
EXECUTE FUNCTION tailrace_count_named_total();
CREATE TRIGGER named_total_deleted AFTER DELETE ON totals FOR EACH ROW
WHEN (old.dimension > 'metadata.' AND old.dimension < 'metadata/' AND old.key <> '')
EXECUTE FUNCTION tailrace_count_named_total();
