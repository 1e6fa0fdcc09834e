-- The fields of a turn that no statement names, as JSON (tailrace.proto.records.TurnDetails).

ALTER TABLE turns ADD COLUMN details TEXT NOT NULL DEFAULT '{}';
