-- What SQLite assumes about the tables when it chooses an index: a tenant has many rows. Without this, SQLite 3.53
-- expects ten, and reads all rows of a tenant where another index has the wanted one. Real statistics would change, and
-- the choices with them. Source: https://sqlite.org/queryplanner-ng.html, "fixed statistics".
-- `stat` has the number of rows, and then how many have the same first column of the index, first two columns, and so on.

ANALYZE sqlite_schema;

DELETE FROM sqlite_stat1;

INSERT INTO sqlite_stat1 (tbl, idx, stat) VALUES
    ('blob_releases', 'blob_releases', '1000 100 1'),
    ('blob_uses', 'blob_uses', '100000 10000 2 1'),
    ('blob_uses', 'blob_uses_by_turn', '100000 10000 2 1'),
    ('files', 'files', '100000 10000 1'),
    ('files', 'files_expiring', '10000 1'),
    ('labels', 'labels', '30000000 3000000 3 1'),
    ('labels', 'labels_by_value', '30000000 3000000 100000 1000 1 1'),
    ('projects', 'projects', '1000 100 1'),
    ('projects', 'projects_by_creation', '1000 100 1 1'),
    ('searched', 'searched_by_turn', '10000000 1000000 1'),
    ('searched', 'searched_older', '1000 100 1'),
    ('session_counts', 'session_counts', '1000 100 1'),
    ('sessions', 'sessions', '3000000 300000 1'),
    ('sessions', 'sessions_by_age', '3000000 1'),
    ('sessions', 'sessions_by_project', '3000000 300000 300 1 1'),
    ('sessions', 'sessions_by_project_and_user', '3000000 300000 300 30 1 1'),
    ('sessions', 'sessions_by_update', '3000000 300000 1 1'),
    ('sessions', 'sessions_by_user', '3000000 300000 30 1 1'),
    ('totals', 'totals', '10000000 1000000 20000 30 1'),
    ('totals', 'totals_by_day', '10000000 1000000 20000 200 1'),
    ('turns', 'sqlite_autoindex_turns_1', '10000000 1000000 1'),
    ('turns', 'turns_batches', '10000 1000 1 1'),
    ('turns', 'turns_by_parent', '10000000 1000000 2 1'),
    ('turns', 'turns_by_session', '10000000 1000000 3 1 1'),
    ('turns', 'turns_by_time', '10000000 1000000 1 1'),
    ('turns', 'turns_running', '100 10 10 1'),
    ('unsearched', 'unsearched', '1000 100 1'),
    ('unstored', 'unstored', '10000 1000 1'),
    ('unstored', 'unstored_by_user', '10000 1000 10 1'),
    ('usage', 'usage', '10000000 1000000 3 1'),
    ('usage', 'usage_by_time', '10000000 1000000 1'),
    ('usage', 'usage_by_turn', '10000000 1000000 1');

ANALYZE sqlite_schema;
