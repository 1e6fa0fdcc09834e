-- To find the sessions that were not used for TAILRACE_HISTORY_DAYS.

CREATE INDEX sessions_by_age ON sessions (updated_at);
