-- The same as 0016_search.sql, which explains the columns.

CREATE TABLE searched (
    number BIGINT NOT NULL PRIMARY KEY,
    tenant TEXT COLLATE "C" NOT NULL,
    turn   TEXT COLLATE "C" NOT NULL,
    words  TEXT COLLATE "C" NOT NULL
);

CREATE UNIQUE INDEX searched_by_turn ON searched (tenant, turn);

-- COST 1000 tells the planner what a call really costs: the server may have to decompress the words of a row.
CREATE FUNCTION tailrace_words(words TEXT) RETURNS TEXT[] LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE COST 1000 AS $$
BEGIN
    RETURN string_to_array(words, ' ');
END
$$;

CREATE INDEX searched_by_words ON searched USING gin (tailrace_words(words));

CREATE TABLE unsearched (
    tenant TEXT COLLATE "C" NOT NULL,
    turn   TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (tenant, turn)
);

INSERT INTO unsearched SELECT tenant, turn FROM turns;

CREATE TABLE unstored (
    tenant    TEXT COLLATE "C" NOT NULL,
    turn      TEXT COLLATE "C" NOT NULL,
    user_hash TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (tenant, turn)
);

CREATE INDEX unstored_by_user ON unstored (tenant, user_hash, turn);
