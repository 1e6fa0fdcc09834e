-- Whether an answer fits the JSON Schema that it was asked to fit.

ALTER TABLE turns ADD COLUMN fits INTEGER; -- 1, 0; NULL: there is none, or nobody could say
