-- The same as 0021_turns_by_outcome.sql. PostgreSQL collects statistics itself.

CREATE INDEX turns_cancelled_or_failed ON turns (tenant, outcome, asked_at, turn)
WHERE outcome IN ('cancelled', 'failed');
