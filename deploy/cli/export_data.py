"""All data of a user or a tenant, as JSON lines."""

from collections.abc import Iterator
from typing import Any

import msgspec

from tailrace.client import Client

# The lists of a tenant's data, with the field that holds the items, and whether they can be listed by user.
LISTS = (
    ("project", "/v1/projects", "data", False),
    ("file", "/v1/files", "data", False),
    ("session", "/v1/sessions", "data", True),
    ("turn", "/v1/turns", "data", True),
)


def export_lines(client: Client, user: str | None) -> Iterator[str]:
    """Yields a JSON object a line: the sessions and turns of `user`; for None all that the tenant has.

    Raises client.TailraceError.
    """
    for kind, path, field, has_user in LISTS:
        if has_user or user is None:
            given = {"user": user} if user is not None else {}
            for item in items(client, path, field, given):
                yield msgspec.json.encode({"type": kind, **item}).decode()


def items(client: Client, path: str, field: str, params: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Yields the items of a list, page by page. Files name the next page by the last item."""
    after: dict[str, str] = {}
    while True:
        page = client.request("GET", path, params={**params, **after})
        yield from page[field]
        if not page["has_more"]:
            return
        after = {"after": page["next"] if "next" in page else page[field][-1]["id"]}
