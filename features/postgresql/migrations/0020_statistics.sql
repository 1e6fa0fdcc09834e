-- PostgreSQL collects statistics itself. asyncpg needs a statement.
SELECT 1;
