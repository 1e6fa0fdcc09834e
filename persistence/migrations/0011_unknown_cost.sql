-- 1: the price of the turn's model is unknown, and its cost counts as 0.

ALTER TABLE turns ADD COLUMN cost_is_unknown INTEGER NOT NULL DEFAULT 0;
