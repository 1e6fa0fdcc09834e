"""Every statement that the store runs, each with a name and a sentence. It runs none of them.

Each names the tenant first, but those that are nobody's question, and each reads along an index (a test asks SQLite
for its plan).
"""

# One parameter set serves the five writes of a turn: the columns of `row.TurnRow`, by name.

# The session of a turn, as old as its first and as new as its last one; of the project that was first named for it.
PUT_SESSION = """
INSERT INTO sessions (tenant, session, project, created_at, updated_at)
VALUES (:tenant, :session, :project, :asked_at, coalesce(:ended_at, :asked_at))
ON CONFLICT (tenant, session) DO UPDATE SET
    project = coalesce(project, excluded.project),
    created_at = min(created_at, excluded.created_at),
    updated_at = max(updated_at, excluded.updated_at)
"""

# The project of a session, if it has one: it is there from when it is first named, and called by its id until then.
PUT_PROJECT = """
INSERT INTO projects (tenant, project, name, created_at)
SELECT tenant, project, project, :asked_at FROM sessions
WHERE tenant = :tenant AND session = :session AND project IS NOT NULL
ON CONFLICT (tenant, project) DO NOTHING
"""

# A turn. A row only ever moves on: a fold that knows less of the log, or just as much, changes nothing.
PUT_TURN = """
INSERT INTO turns (
    tenant, turn, session, parent, model, outcome, input, content, text, stop_reason, stop_sequence, envelope, fits,
    error, attempts, metadata, asked_at, ended_at, cursor, text_chars, text_sha256, batch
) VALUES (
    :tenant, :turn, :session, :parent, :model, :outcome, :input, :content, :text, :stop_reason, :stop_sequence,
    :envelope, :fits, :error, :attempts, :metadata, :asked_at, :ended_at, :cursor, :text_chars, :text_sha256, :batch
)
ON CONFLICT (tenant, turn) DO UPDATE SET
    outcome = excluded.outcome,
    content = excluded.content,
    text = excluded.text,
    stop_reason = excluded.stop_reason,
    stop_sequence = excluded.stop_sequence,
    envelope = excluded.envelope,
    fits = excluded.fits,
    error = excluded.error,
    attempts = excluded.attempts,
    ended_at = excluded.ended_at,
    cursor = excluded.cursor,
    text_chars = excluded.text_chars,
    text_sha256 = excluded.text_sha256,
    batch = excluded.batch
WHERE excluded.cursor > turns.cursor
"""

# What the turn has used, if the turn's row is this very fold's: run after PUT_TURN, in its transaction.
PUT_USAGE = """
INSERT INTO usage (
    tenant, session, turn, input_tokens, output_tokens, cache_creation_input_tokens, cache_read_input_tokens,
    is_estimated, cost_nusd, messages, model, asked_at, asked_by
)
SELECT tenant, session, turn,
    :input_tokens, :output_tokens, :cache_creation_input_tokens, :cache_read_input_tokens,
    :is_estimated, :cost_nusd, :messages, model, asked_at, :asked_by
FROM turns WHERE tenant = :tenant AND turn = :turn AND cursor = :cursor
ON CONFLICT (tenant, session, turn) DO UPDATE SET
    input_tokens = excluded.input_tokens,
    output_tokens = excluded.output_tokens,
    cache_creation_input_tokens = excluded.cache_creation_input_tokens,
    cache_read_input_tokens = excluded.cache_read_input_tokens,
    is_estimated = excluded.is_estimated,
    cost_nusd = excluded.cost_nusd,
    messages = excluded.messages,
    asked_by = excluded.asked_by
"""

# Which blobs the turn refers to. A turn's request never changes, so neither does this.
PUT_BLOB_USES = """
INSERT INTO blob_uses (tenant, sha256, turn) SELECT :tenant, value, :turn FROM json_each(:blobs) WHERE true
ON CONFLICT (tenant, sha256, turn) DO NOTHING
"""

# The turns of all tenants that are running here, while the log has nothing any more of what is known of them.
LOSE_TURNS = """
UPDATE turns SET outcome = 'failed', error = :error WHERE outcome = 'running' AND cursor < :first
"""

# How far of the log is here, written with what is of it.
REACH = "UPDATE reached SET seq = max(seq, :seq)"

# The same, before all of the log is told again.
REACH_NOTHING = "UPDATE reached SET seq = 0"

# The same, to be read.
REACHED = "SELECT seq FROM reached"

# A turn that is running here, and is not in the log.
LOSE_TURN = """
UPDATE turns SET outcome = 'failed', error = :error WHERE tenant = :tenant AND turn = :turn AND outcome = 'running'
"""

# The turns of all tenants that are running here.
RUNNING_TURNS = "SELECT tenant, turn FROM turns WHERE outcome = 'running'"

# A session before its first turn; changes nothing when there is one of that name.
NEW_SESSION = """
INSERT INTO sessions (tenant, session, title, model, system, project, created_at, updated_at)
VALUES (:tenant, :session, :title, :model, :system, :project, :asked_at, :asked_at)
ON CONFLICT (tenant, session) DO NOTHING
"""

# Another title; when the session was used is not touched, so that no list is put in another order.
RENAME_SESSION = "UPDATE sessions SET title = :title WHERE tenant = :tenant AND session = :session"

# A project by its name; changes nothing when there is one of that id.
NEW_PROJECT = """
INSERT INTO projects (tenant, project, name, description, created_at)
VALUES (:tenant, :project, :name, :description, :created_at)
ON CONFLICT (tenant, project) DO NOTHING
"""

# The blobs of a turn, before its row goes: somebody has to look whether another turn refers to them.
RELEASE_BLOBS = """
INSERT INTO blob_releases (tenant, sha256) SELECT tenant, sha256 FROM blob_uses WHERE tenant = :tenant AND turn = :turn
ON CONFLICT (tenant, sha256) DO NOTHING
"""

# The same of a turn that never had a row.
RELEASE_NAMED_BLOBS = """
INSERT INTO blob_releases (tenant, sha256) SELECT :tenant, value FROM json_each(:blobs) WHERE true
ON CONFLICT (tenant, sha256) DO NOTHING
"""

# Which blobs a turn refers to.
DELETE_BLOB_USES = "DELETE FROM blob_uses WHERE tenant = :tenant AND turn = :turn"

# Whether any turn refers to a blob.
BLOB_USE = "SELECT turn FROM blob_uses WHERE tenant = :tenant AND sha256 = :sha256 LIMIT 1"

# A blob that was released, once it is gone, or stays.
FORGET_BLOB = "DELETE FROM blob_releases WHERE tenant = :tenant AND sha256 = :sha256"

# Blobs of a tenant that were released, after one of them.
RELEASED_BLOBS = """
SELECT sha256 FROM blob_releases WHERE tenant = :tenant AND sha256 > :after ORDER BY sha256 LIMIT :limit
"""

# The tenants who have such.
RELEASING_TENANTS = "SELECT DISTINCT tenant FROM blob_releases LIMIT :limit"

# What a turn has used, before its row goes.
DELETE_USAGE = """
DELETE FROM usage WHERE tenant = :tenant AND turn = :turn
    AND session = (SELECT session FROM turns WHERE tenant = :tenant AND turn = :turn)
"""

# A turn.
DELETE_TURN = "DELETE FROM turns WHERE tenant = :tenant AND turn = :turn"

# A session, once it has no turns: one that was just asked would have nowhere to belong.
DELETE_SESSION = """
DELETE FROM sessions WHERE tenant = :tenant AND session = :name
    AND NOT EXISTS (SELECT 1 FROM turns WHERE turns.tenant = :tenant AND turns.session = sessions.session)
"""

# The sessions of a project that have no turns.
DELETE_PROJECT_SESSIONS = """
DELETE FROM sessions WHERE tenant = :tenant AND project = :name
    AND NOT EXISTS (SELECT 1 FROM turns WHERE turns.tenant = :tenant AND turns.session = sessions.session)
"""

# A project, once it has no sessions.
DELETE_PROJECT = """
DELETE FROM projects WHERE tenant = :tenant AND project = :name
    AND NOT EXISTS (SELECT 1 FROM sessions WHERE sessions.tenant = :tenant AND sessions.project = :name)
"""

# One turn.
TURN = """
SELECT * FROM turns JOIN usage USING (tenant, session, turn)
WHERE tenant = :tenant AND turn = :turn
"""

_BATCHES = """
SELECT turn, session, outcome, error, metadata, asked_at, ended_at, batch FROM turns
WHERE tenant = :tenant AND batch IS NOT NULL
"""

# A turn that is a batch.
BATCH = f"{_BATCHES} AND turn = :turn"

# The batches before one of them, newest first. By the primary key SQLite would read every turn of the tenant.
BATCHES = f"""
{_BATCHES.replace("FROM turns", "FROM turns INDEXED BY turns_batches")}
    AND (asked_at, turn) < (:before_at, :before)
ORDER BY asked_at DESC, turn DESC LIMIT :limit
"""

# The turns of a session after one of them, oldest first.
SESSION_TURNS = """
SELECT * FROM turns JOIN usage USING (tenant, session, turn)
WHERE tenant = :tenant AND session = :session AND (turns.asked_at, turn) > (:after_at, :after)
ORDER BY turns.asked_at, turn LIMIT :limit
"""

# The newest turn of a session.
LAST_TURN = """
SELECT turn FROM turns
WHERE tenant = :tenant AND session = :session
ORDER BY asked_at DESC, turn DESC LIMIT 1
"""

# A turn and its ancestors, oldest first. `depth_max` is for a circle of parents, which nobody should have made.
# CROSS JOIN is SQLite's way to say "in this order": without it the planner walked all turns of the tenant.
_ANCESTORS = """
WITH RECURSIVE branch (depth, turn, parent) AS (
    SELECT 0, turn, parent FROM turns WHERE tenant = :tenant AND turn = :turn
    UNION ALL
    SELECT depth + 1, turns.turn, turns.parent
    FROM branch JOIN turns ON turns.tenant = :tenant AND turns.turn = branch.parent
    WHERE depth < :depth_max
)
"""
BRANCH = f"""{_ANCESTORS}
SELECT turns.*, usage.* FROM branch
CROSS JOIN turns ON turns.tenant = :tenant AND turns.turn = branch.turn
CROSS JOIN usage ON usage.tenant = :tenant AND usage.session = turns.session AND usage.turn = turns.turn
ORDER BY branch.depth DESC
"""

# The same, by name only.
CHAIN = f"{_ANCESTORS} SELECT turn FROM branch ORDER BY depth DESC"

# The turns of a session that no other goes on from, older than one of them, newest first.
LEAVES = """
SELECT turn, outcome, asked_at FROM turns AS leaf
WHERE tenant = :tenant AND session = :session AND (asked_at, turn) < (:before_at, :before)
    AND NOT EXISTS (SELECT 1 FROM turns WHERE turns.tenant = :tenant AND turns.parent = leaf.turn)
ORDER BY asked_at DESC, turn DESC LIMIT :limit
"""

# A turn and all that goes on from it, furthest first: whoever deletes in this order can go on after any of them.
TURN_AND_FOLLOW_UPS = """
WITH RECURSIVE branch (depth, turn) AS (
    SELECT 0, turn FROM turns WHERE tenant = :tenant AND turn = :name
    UNION ALL
    SELECT depth + 1, turns.turn
    FROM branch JOIN turns ON turns.tenant = :tenant AND turns.parent = branch.turn
    WHERE depth < :depth_max
)
SELECT turns.turn, turns.outcome FROM branch
CROSS JOIN turns ON turns.tenant = :tenant AND turns.turn = branch.turn
GROUP BY turns.turn ORDER BY max(depth) DESC LIMIT :limit
"""

# Some turns of a session.
TURNS_OF_SESSION = "SELECT turn, outcome FROM turns WHERE tenant = :tenant AND session = :name LIMIT :limit"

# Some turns of a project.
TURNS_OF_PROJECT = """
SELECT turns.turn, turns.outcome FROM sessions
CROSS JOIN turns ON turns.tenant = :tenant AND turns.session = sessions.session
WHERE sessions.tenant = :tenant AND sessions.project = :name LIMIT :limit
"""

_TOTALS = """
    count(usage.turn) AS turns,
    coalesce(sum(usage.messages), 0) AS messages,
    coalesce(sum(usage.input_tokens), 0) AS input_tokens,
    coalesce(sum(usage.output_tokens), 0) AS output_tokens,
    coalesce(sum(usage.cache_creation_input_tokens), 0) AS cache_creation_input_tokens,
    coalesce(sum(usage.cache_read_input_tokens), 0) AS cache_read_input_tokens,
    coalesce(sum(usage.cost_nusd), 0) AS cost_nusd,
    max(usage.asked_at) AS last_used_at
"""

_WITH_TOTALS = f"""
SELECT page.session, page.title, page.model, page.system, page.project, page.created_at, page.updated_at, {_TOTALS}
FROM page LEFT JOIN usage ON usage.tenant = :tenant AND usage.session = page.session
GROUP BY page.session
ORDER BY page.updated_at DESC, page.session DESC
"""

# One session, with the totals of all its branches.
SESSION = f"""
WITH page AS (SELECT * FROM sessions WHERE tenant = :tenant AND session = :session)
{_WITH_TOTALS}"""

# The sessions of a tenant that are older than one of them, newest first, with their totals.
SESSIONS = f"""
WITH page AS (
    SELECT * FROM sessions
    WHERE tenant = :tenant AND (updated_at, session) < (:before_at, :before)
    ORDER BY updated_at DESC, session DESC LIMIT :limit
)
{_WITH_TOTALS}"""

# The same, of one project.
PROJECT_SESSIONS = f"""
WITH page AS (
    SELECT * FROM sessions
    WHERE tenant = :tenant AND project = :project AND (updated_at, session) < (:before_at, :before)
    ORDER BY updated_at DESC, session DESC LIMIT :limit
)
{_WITH_TOTALS}"""

_PROJECTS_WITH_TOTALS = f"""
SELECT page.project, page.name, page.description, page.created_at,
    max(page.created_at, coalesce(max(sessions.updated_at), 0)) AS updated_at,
    count(DISTINCT sessions.session) AS sessions, {_TOTALS}
FROM page
LEFT JOIN sessions ON sessions.tenant = :tenant AND sessions.project = page.project
LEFT JOIN usage ON usage.tenant = :tenant AND usage.session = sessions.session
GROUP BY page.project
ORDER BY page.created_at DESC, page.project DESC
"""

# One project, with the totals of all its sessions.
PROJECT = f"""
WITH page AS (SELECT * FROM projects WHERE tenant = :tenant AND project = :project)
{_PROJECTS_WITH_TOTALS}"""

# The projects of a tenant that are older than one of them, newest first, with their totals.
PROJECTS = f"""
WITH page AS (
    SELECT * FROM projects
    WHERE tenant = :tenant AND (created_at, project) < (:before_at, :before)
    ORDER BY created_at DESC, project DESC LIMIT :limit
)
{_PROJECTS_WITH_TOTALS}"""

# How many sessions were used since a time.
ACTIVE_SESSIONS = "SELECT count(*) AS sessions FROM sessions WHERE tenant = :tenant AND updated_at > :since"

# What those have used, by model.
ACTIVE_USAGE = f"""
SELECT usage.model AS key, {_TOTALS}
FROM sessions CROSS JOIN usage ON usage.tenant = :tenant AND usage.session = sessions.session
WHERE sessions.tenant = :tenant AND sessions.updated_at > :since
GROUP BY usage.model ORDER BY key
"""

# The sessions that are being answered.
BUSY_SESSIONS = """
SELECT DISTINCT session FROM turns
WHERE tenant = :tenant AND outcome = 'running' ORDER BY session LIMIT :limit
"""

# What was used between two times, a line a UTC day, a model, a key, a session, a project, in the order of that; after
# one of them.
_BETWEEN = """
WHERE usage.tenant = :tenant AND usage.asked_at >= :from_at AND usage.asked_at < :to_at
GROUP BY key HAVING :after IS NULL OR key > :after
ORDER BY key LIMIT :limit
"""
USAGE_BY_DAY = f"""
SELECT date(usage.asked_at / 1000000, 'unixepoch') AS key, {_TOTALS} FROM usage {_BETWEEN}
"""
USAGE_BY_MODEL = f"""
SELECT usage.model AS key, {_TOTALS} FROM usage {_BETWEEN}
"""
USAGE_BY_KEY = f"""
SELECT coalesce(usage.asked_by, '') AS key, {_TOTALS} FROM usage {_BETWEEN}
"""
# By its own order SQLite would read all that the tenant ever used.
USAGE_BY_SESSION = f"""
SELECT usage.session AS key, {_TOTALS} FROM usage INDEXED BY usage_by_time {_BETWEEN}
"""
USAGE_BY_PROJECT = f"""
SELECT coalesce(sessions.project, '') AS key, {_TOTALS}
FROM usage CROSS JOIN sessions ON sessions.tenant = :tenant AND sessions.session = usage.session {_BETWEEN}
"""
