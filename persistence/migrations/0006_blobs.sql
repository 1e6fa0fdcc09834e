-- Which turn refers to which blob, so that a blob goes with the last turn that does (PROTOCOL R34).

CREATE TABLE blob_uses (
    tenant TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    turn   TEXT NOT NULL,
    PRIMARY KEY (tenant, sha256, turn)
) STRICT, WITHOUT ROWID;

CREATE INDEX blob_uses_by_turn ON blob_uses (tenant, turn, sha256);

-- What a deleted turn referred to, until somebody has looked whether another one does. Mostly empty.
CREATE TABLE blob_releases (
    tenant TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    PRIMARY KEY (tenant, sha256)
) STRICT, WITHOUT ROWID;

-- Of older turns, as far as their messages say; what the log still has is told again, with system prompts and tools.
INSERT INTO blob_uses (tenant, sha256, turn)
SELECT DISTINCT turns.tenant, node.atom, turns.turn
FROM turns, json_tree(turns.input) AS node
WHERE instr(turns.input, '"tailrace:blob"') AND node.key = 'tailrace:blob' AND node.type = 'text';
