-- The last entry that was recorded here. Of one after it that is acknowledged, nothing is here: this file is a backup.

CREATE TABLE reached (seq INTEGER NOT NULL);
INSERT INTO reached SELECT coalesce(max(cursor), 0) FROM turns;
