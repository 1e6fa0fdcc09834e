"""Full text search: its row of words is written in the recorder's transaction; answers `q` of ListTurns (ADR 28)."""
