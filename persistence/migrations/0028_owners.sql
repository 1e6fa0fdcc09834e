-- The owners of sessions, of their turns, and of files; NULL: the tenant.
--
-- The owner of an older session is proven if its first turn has begun it, and the user of this turn was the subject of
-- its token: the name of the credential begins with the hash of the subject. `subject_hash` is a function of
-- persistence/sqlite.py.

ALTER TABLE sessions ADD COLUMN owner TEXT;
ALTER TABLE turns ADD COLUMN owner TEXT;
ALTER TABLE files ADD COLUMN owner TEXT;

CREATE INDEX sessions_by_owner ON sessions (tenant, owner, updated_at, session) WHERE owner IS NOT NULL;

UPDATE sessions SET owner = (
    SELECT turns.user FROM turns
    JOIN usage ON usage.tenant = turns.tenant AND usage.session = turns.session AND usage.turn = turns.turn
    WHERE turns.tenant = sessions.tenant AND turns.session = sessions.session AND turns.asked_at = sessions.created_at
        AND turns.user IS NOT NULL AND asked_by = 'jwt_' || substr(subject_hash(turns.user), 1, 16)
    LIMIT 1
);

UPDATE turns SET owner = sessions.owner FROM sessions
WHERE sessions.tenant = turns.tenant AND sessions.session = turns.session AND sessions.owner IS NOT NULL;

INSERT INTO labels (tenant, turn, name, value, asked_at)
SELECT tenant, turn, 'owner', owner, asked_at FROM turns WHERE owner IS NOT NULL;

-- See 0020_statistics.sql.
INSERT INTO sqlite_stat1 (tbl, idx, stat) VALUES ('sessions', 'sessions_by_owner', '3000000 300000 30 1 1');

ANALYZE sqlite_schema;
