-- A random id, by which processes find that they use different databases. A copy to another database has its own.

CREATE TABLE identity (id TEXT COLLATE "C" NOT NULL);
INSERT INTO identity SELECT gen_random_uuid();
