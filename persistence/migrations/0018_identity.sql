-- A random id, by which processes find that they use different databases. A copy to another database has its own.

CREATE TABLE identity (id TEXT NOT NULL);
INSERT INTO identity SELECT lower(hex(randomblob(16)));
