-- When the first delta of the answer was stored; NULL: none was, or an older version recorded the turn.

ALTER TABLE turns ADD COLUMN first_token_at INTEGER;
