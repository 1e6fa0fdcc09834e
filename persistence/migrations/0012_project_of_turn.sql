-- The project that a turn's request named; NULL: none, or an older version recorded the turn.

ALTER TABLE turns ADD COLUMN project TEXT;
