"""The migrations in which PostgreSQL differs from SQLite, see `tailrace.persistence.migrations`."""
