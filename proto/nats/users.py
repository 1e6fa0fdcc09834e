"""The users of NATS: one for each role of a process, and the administrator's."""

from tailrace.proto.ids import is_token
from tailrace.proto.subjects import GENERATORS, PERSISTENCE

GATEWAY = "gateway"
# The user of `up` and of the commands: sets NATS up, creates keys, queries usage. Reads all entries, stores none.
ADMIN = "admin"
USERS = (GATEWAY, GENERATORS, PERSISTENCE, ADMIN)


def inbox_prefix(user: str) -> str:
    """Returns the prefix of a user's inboxes, to which no other user may subscribe."""
    return f"_INBOX.{user}" if is_token(user) else "_INBOX"
