-- The SQL statements of uploaded files.

-- fragment: file_columns
-- The columns of a file's record.
file, sha256, bytes, filename, media_type, purpose, created_at, expires_at, owner

-- name: put_file
-- Stores an uploaded file. A repeated command changes nothing.
INSERT INTO files (tenant, {file_columns})
VALUES (:tenant, :file, :sha256, :bytes, :filename, :media_type, :purpose, :created_at, :expires_at, :owner)
ON CONFLICT (tenant, file) DO NOTHING

-- name: put_file_use
-- Stores which blob a file refers to.
INSERT INTO blob_uses (tenant, sha256, turn) VALUES (:tenant, :sha256, :file)
ON CONFLICT (tenant, sha256, turn) DO NOTHING

-- name: file
-- One file.
SELECT {file_columns} FROM files WHERE tenant = :tenant AND file = :file AND coalesce(expires_at > :now, true)

-- fragment: of_page_of_files
-- The files after a cursor that have not expired, newest first: their ids grow with time. Of one owner unless it is null.
file < :after AND coalesce(expires_at > :now, true) AND (:owner IS NULL OR owner = :owner)
ORDER BY file DESC LIMIT :limit

-- fragment: of_page_of_oldest_files
-- The same, oldest first.
file > :after AND coalesce(expires_at > :now, true) AND (:owner IS NULL OR owner = :owner)
ORDER BY file LIMIT :limit

-- name: files
-- A page of files, newest first.
SELECT {file_columns} FROM files WHERE tenant = :tenant AND {of_page_of_files}

-- name: oldest_files
-- The same, oldest first.
SELECT {file_columns} FROM files WHERE tenant = :tenant AND {of_page_of_oldest_files}

-- name: purpose_files
-- A page of files with one purpose. A statement of its own, so that each has an index in the order of the page.
SELECT {file_columns} FROM files WHERE tenant = :tenant AND purpose = :purpose AND {of_page_of_files}

-- name: oldest_purpose_files
-- The same, oldest first.
SELECT {file_columns} FROM files WHERE tenant = :tenant AND purpose = :purpose AND {of_page_of_oldest_files}

-- name: every_file
-- The ids of all files of a tenant.
SELECT file FROM files WHERE tenant = :tenant AND file >= '' ORDER BY file

-- name: delete_file
-- Deletes a file's record.
DELETE FROM files WHERE tenant = :tenant AND file = :turn

-- name: release_user_files
-- Releases the blobs of a user's files.
INSERT INTO blob_releases (tenant, sha256)
SELECT tenant, sha256 FROM files WHERE tenant = :tenant AND file >= '' AND owner = :name
ON CONFLICT (tenant, sha256) DO NOTHING

-- name: delete_user_file_uses
-- Deletes which blobs a user's files refer to.
DELETE FROM blob_uses WHERE tenant = :tenant
    AND turn IN (SELECT file FROM files WHERE tenant = :tenant AND file >= '' AND owner = :name)

-- name: delete_user_files
-- Deletes the records of a user's files.
DELETE FROM files WHERE tenant = :tenant AND file >= '' AND owner = :name

-- name: expired_files
-- Expired files of all tenants.
SELECT tenant, file FROM files WHERE expires_at <= :now LIMIT :limit
