-- Turns whose words another version of features/search has made: their first word is not `2`. Persistence empties it
-- after its start. See `words.VERSION` there.
CREATE INDEX searched_older ON searched (tenant, turn) WHERE substr(words, 1, 2) <> '2 ';

-- The sessions of one user in one project, in the order of their list.
CREATE INDEX sessions_by_project_and_user ON sessions (tenant, project, "user", updated_at, session)
WHERE "user" IS NOT NULL;
