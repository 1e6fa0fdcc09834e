-- The same as 0028_owners.sql. PostgreSQL collects statistics itself.

ALTER TABLE sessions ADD COLUMN owner TEXT COLLATE "C";
ALTER TABLE turns ADD COLUMN owner TEXT COLLATE "C";
ALTER TABLE files ADD COLUMN owner TEXT COLLATE "C";

CREATE INDEX sessions_by_owner ON sessions (tenant, owner, updated_at, session) WHERE owner IS NOT NULL;

UPDATE sessions SET owner = (
    SELECT turns."user" FROM turns
    JOIN usage ON usage.tenant = turns.tenant AND usage.session = turns.session AND usage.turn = turns.turn
    WHERE turns.tenant = sessions.tenant AND turns.session = sessions.session AND turns.asked_at = sessions.created_at
        AND turns."user" IS NOT NULL
        AND asked_by = 'jwt_' || substr(encode(sha256(convert_to(turns."user", 'UTF8')), 'hex'), 1, 16)
    LIMIT 1
);

UPDATE turns SET owner = sessions.owner FROM sessions
WHERE sessions.tenant = turns.tenant AND sessions.session = turns.session AND sessions.owner IS NOT NULL;

INSERT INTO labels (tenant, turn, name, value, asked_at)
SELECT tenant, turn, 'owner', owner, asked_at FROM turns WHERE owner IS NOT NULL;
