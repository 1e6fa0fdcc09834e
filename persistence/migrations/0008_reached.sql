-- The last recorded entry of the log. If later entries are acknowledged, this file is a restored backup.

CREATE TABLE reached (seq INTEGER NOT NULL);
INSERT INTO reached SELECT coalesce(max(cursor), 0) FROM turns;
