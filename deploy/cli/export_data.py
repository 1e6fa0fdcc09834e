"""All data of a user or a tenant, as JSON lines."""

from collections.abc import Iterator

import msgspec

from tailrace.client import Client

# The lists of a tenant's data, and whether they can be listed by user.
LISTS = (
    ("project", "/v1/projects", False),
    ("file", "/v1/files", False),
    ("session", "/v1/sessions", True),
    ("turn", "/v1/turns", True),
)


def export_lines(client: Client, user: str | None) -> Iterator[str]:
    """Yields a JSON object a line: the sessions and turns of `user`; for None all that the tenant has.

    Raises client.TailraceError.
    """
    for kind, path, has_user in LISTS:
        if has_user or user is None:
            parameters = {"user": user} if user is not None else {}
            for item in client.items(path, parameters):
                yield msgspec.json.encode({"type": kind, **item}).decode()
