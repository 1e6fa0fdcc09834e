-- Uploaded files. The content is a blob, to which blob_uses refers with the id of the file in place of a turn's.

CREATE TABLE files (
    tenant     TEXT NOT NULL,
    file       TEXT NOT NULL,
    sha256     TEXT NOT NULL,
    bytes      INTEGER NOT NULL,
    filename   TEXT NOT NULL,
    media_type TEXT NOT NULL,
    purpose    TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    PRIMARY KEY (tenant, file)
) STRICT, WITHOUT ROWID;

CREATE INDEX files_expiring ON files (expires_at) WHERE expires_at IS NOT NULL;
