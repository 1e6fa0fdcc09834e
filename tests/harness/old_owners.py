"""Sessions, turns and files of a version without owners, and the owners that they have after the migration."""

import hashlib

from tailrace.persistence.store import Store


def by(subject: str) -> str:
    """Returns the name of the credential of a token with this subject."""
    return f"jwt_{hashlib.sha256(subject.encode()).hexdigest()[:16]}"


# Sessions with the time of their creation, and their turns: the time, the user and the credential.
SESSIONS: dict[str, tuple[int, list[tuple[int, str | None, str | None]]]] = {
    # A token has begun it. Later turns of others are turns of the session.
    "of-ann": (10, [(10, "ann", by("ann")), (20, "bob", by("bob")), (30, None, "key_1")]),
    # The body has named the user, or a token whose user is not its subject.
    "labelled": (10, [(10, "ann", "key_1"), (20, "ann", by("ann"))]),
    "other-claim": (10, [(10, "ann@example.com", by("ann"))]),
    # It was created before its first turn, by an unknown credential.
    "created": (5, [(10, "ann", by("ann"))]),
    "without-a-user": (10, [(10, None, by("ann"))]),
    "empty": (10, []),
}
OWNERS = {"of-ann": "ann"}


SESSION = "INSERT INTO sessions (tenant, session, created_at, updated_at) VALUES ('ours', '{session}', {at}, {at})"
TURN = """
INSERT INTO turns (
    tenant, turn, session, "user", model, outcome, input, content, text, attempts, metadata, asked_at, cursor
) VALUES (
    'ours', '{session}-{at}', '{session}', {user}, 'm', 'completed', '[]', '[]', '', 1, '{{}}', {at}, {at}
)
"""
USAGE = """
INSERT INTO usage (
    tenant, turn, session, input_tokens, output_tokens, cache_creation_input_tokens, cache_read_input_tokens,
    is_estimated, cost_nusd, asked_at, asked_by
) VALUES ('ours', '{session}-{at}', '{session}', 0, 0, 0, 0, 0, 0, {at}, {by})
"""
FILE = """
INSERT INTO files (tenant, file, sha256, bytes, filename, media_type, purpose, created_at)
VALUES ('ours', 'file-1', 'x', 1, 'a', 'text/plain', 'batch', 1)
"""


def statements() -> list[str]:
    """Returns the SQL that inserts the rows into either database."""
    made = [FILE]
    for session, (created_at, turns) in SESSIONS.items():
        made.append(SESSION.format(session=session, at=created_at))
        for at, user, credential in turns:
            made.append(TURN.format(session=session, at=at, user=quoted(user)))
            made.append(USAGE.format(session=session, at=at, by=quoted(credential)))
    return made


def quoted(text: str | None) -> str:
    return "NULL" if text is None else f"'{text}'"


async def require_owners(store: Store) -> None:
    """Raises AssertionError if the migrated rows have other owners."""
    sessions = await store.database.read("SELECT session, owner FROM sessions", {})
    assert {row["session"]: row["owner"] for row in sessions} == {name: OWNERS.get(name) for name in SESSIONS}
    turns = await store.database.read("SELECT turn, session, owner FROM turns", {})
    assert {row["turn"]: row["owner"] for row in turns} == {row["turn"]: OWNERS.get(row["session"]) for row in turns}
    labels = await store.database.read("SELECT turn, value FROM labels WHERE name = 'owner'", {})
    assert {(row["turn"], row["value"]) for row in labels} == {
        (row["turn"], row["owner"]) for row in turns if row["owner"] is not None
    }
    assert await store.database.read("SELECT owner FROM files", {}) == [{"owner": None}]
