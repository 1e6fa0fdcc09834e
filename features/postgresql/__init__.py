"""PostgreSQL: persistence on a PostgreSQL server instead of a SQLite file (ADR 27)."""
