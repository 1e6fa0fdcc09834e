-- The SQL statements of projects.

-- name: put_project
-- Creates the project of a session if it has one. Its name is its id until a client names it.
INSERT INTO projects (tenant, project, name, created_at)
SELECT tenant, project, project, :asked_at FROM sessions
WHERE tenant = :tenant AND session = :session AND project IS NOT NULL
ON CONFLICT (tenant, project) DO NOTHING

-- name: create_project
-- Creates a project with a name; changes nothing if the id is in use.
INSERT INTO projects (tenant, project, name, description, created_at)
VALUES (:tenant, :project, :name, :description, :created_at)
ON CONFLICT (tenant, project) DO NOTHING

-- name: delete_project_sessions
-- Deletes the sessions of a project without turns.
DELETE FROM sessions WHERE tenant = :tenant AND project = :name

-- name: delete_tenant_projects
-- Deletes the projects of a tenant without sessions.
DELETE FROM projects WHERE tenant = :tenant AND created_at >= 0

-- name: delete_project
-- Deletes a project without sessions.
DELETE FROM projects WHERE tenant = :tenant AND project = :name

-- name: project_turn_ids
-- Some turns of a project.
SELECT turns.turn, turns.outcome FROM sessions
{join} turns ON turns.tenant = :tenant AND turns.session = sessions.session
WHERE sessions.tenant = :tenant AND sessions.project = :name LIMIT :limit

-- fragment: project_facts
-- When a project in `page` was used, and the number of its sessions.
    {greatest}(created_at, coalesce(
        (SELECT max(updated_at) FROM sessions WHERE tenant = :tenant AND sessions.project = page.project), 0
    )) AS updated_at,
    coalesce(
        (SELECT sessions FROM session_counts WHERE tenant = :tenant AND session_counts.project = page.project), 0
    ) AS sessions

-- fragment: projects_with_totals
-- Projects in `page` with their totals, in which deleted turns are included.
SELECT page.*, {project_facts}, {sums}
FROM page LEFT JOIN totals ON totals.tenant = :tenant AND dimension = 'project' AND key = page.project
GROUP BY page.project
ORDER BY created_at DESC, page.project DESC

-- name: project
-- One project, with the totals of all its sessions.
WITH page AS (SELECT * FROM projects WHERE tenant = :tenant AND project = :project)
{projects_with_totals}

-- name: projects
-- The projects of a tenant before a cursor, newest first, with totals.
WITH page AS (
    SELECT * FROM projects
    WHERE tenant = :tenant AND (created_at, project) < (:before_at, :before)
    ORDER BY created_at DESC, project DESC LIMIT :limit
)
{projects_with_totals}

-- name: projects_from
-- The projects of a tenant from the one with a number on, newest first, with totals.
WITH page AS (
    SELECT * FROM projects WHERE tenant = :tenant
    ORDER BY created_at DESC, project DESC LIMIT :limit OFFSET :offset
)
{projects_with_totals}

-- name: count_projects
-- The number of projects of a tenant.
SELECT count(*) AS total FROM projects WHERE tenant = :tenant
