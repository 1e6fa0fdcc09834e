-- Whether an answer fits the JSON Schema of its request.

ALTER TABLE turns ADD COLUMN fits INTEGER; -- 1, 0; NULL: no schema, or not checked
