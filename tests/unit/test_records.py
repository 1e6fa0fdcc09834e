"""The queries to persistence: what processes of two releases send each other."""

import msgspec

from tailrace.proto.records import GetContext


def test_the_query_for_a_context_has_the_fields_that_older_processes_read() -> None:
    """Gateways and persistence are not replaced at the same moment."""
    sent = msgspec.json.encode(GetContext("a session", create_session=True))
    assert msgspec.json.decode(sent) == {"session": "a session", "parent": None, "begin": True}
