-- Full text search, and turns with `store: false` by their user.

-- The words by which a search finds a turn: their hashes (features/search), separated by spaces. The order of `number`
-- is that of `asked_at`.
CREATE TABLE searched (
    number INTEGER NOT NULL PRIMARY KEY,
    tenant TEXT NOT NULL,
    turn   TEXT NOT NULL,
    words  TEXT NOT NULL
) STRICT;

CREATE UNIQUE INDEX searched_by_turn ON searched (tenant, turn);

-- The index of `words`, which keeps no copy of them. The triggers are those of https://sqlite.org/fts5.html#external_content_tables
CREATE VIRTUAL TABLE search USING fts5 (
    words, content = 'searched', content_rowid = 'number', tokenize = 'ascii', detail = 'none', columnsize = 0
);

CREATE TRIGGER searched_inserted AFTER INSERT ON searched BEGIN
    INSERT INTO search (rowid, words) VALUES (new.number, new.words);
END;

CREATE TRIGGER searched_deleted AFTER DELETE ON searched BEGIN
    INSERT INTO search (search, rowid, words) VALUES ('delete', old.number, old.words);
END;

CREATE TRIGGER searched_updated AFTER UPDATE ON searched BEGIN
    INSERT INTO search (search, rowid, words) VALUES ('delete', old.number, old.words);
    INSERT INTO search (rowid, words) VALUES (new.number, new.words);
END;

-- Turns of older versions whose words are to be stored. Persistence empties it after its start.
CREATE TABLE unsearched (
    tenant TEXT NOT NULL,
    turn   TEXT NOT NULL,
    PRIMARY KEY (tenant, turn)
) STRICT, WITHOUT ROWID;

INSERT INTO unsearched SELECT tenant, turn FROM turns;

-- Turns with `store: false` until they are erased. `user_hash` is a hash of the user's name, '' without one.
CREATE TABLE unstored (
    tenant    TEXT NOT NULL,
    turn      TEXT NOT NULL,
    user_hash TEXT NOT NULL,
    PRIMARY KEY (tenant, turn)
) STRICT, WITHOUT ROWID;

CREATE INDEX unstored_by_user ON unstored (tenant, user_hash, turn);
