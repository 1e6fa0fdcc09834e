"""Full text search: the recorder's transaction writes a row of words for a turn; `q` of ListTurns finds it (ADR 28)."""
