-- Which turn refers to which blob, so that a blob is deleted with the last turn that does (PROTOCOL R34).

CREATE TABLE blob_uses (
    tenant TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    turn   TEXT NOT NULL,
    PRIMARY KEY (tenant, sha256, turn)
) STRICT, WITHOUT ROWID;

CREATE INDEX blob_uses_by_turn ON blob_uses (tenant, turn, sha256);

-- Blobs of deleted turns, until the collector has checked whether another turn refers to them. Usually empty.
CREATE TABLE blob_releases (
    tenant TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    PRIMARY KEY (tenant, sha256)
) STRICT, WITHOUT ROWID;

-- References of older turns, as far as they are in their messages; turns that are still in the log are recorded again,
-- with the references in system prompts and tools.
INSERT INTO blob_uses (tenant, sha256, turn)
SELECT DISTINCT turns.tenant, node.atom, turns.turn
FROM turns, json_tree(turns.input) AS node
WHERE instr(turns.input, '"tailrace:blob"') AND node.key = 'tailrace:blob' AND node.type = 'text';
