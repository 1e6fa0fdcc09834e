"""Identifiers: tenants, turns, sessions, and stream sequences. UUIDv7 generation, validation, cursor parsing."""

import hashlib
import re
import secrets
import time
from typing import NamedTuple, NewType

from tailrace.proto.errors import CursorUnknown

Tenant = NewType("Tenant", str)
TurnId = NewType("TurnId", str)
SessionId = NewType("SessionId", str)


class TurnKey(NamedTuple):
    """The full name of a turn: its tenant and its id."""

    tenant: Tenant
    turn: TurnId


Seq = NewType("Seq", int)
"""The stream sequence of an entry, from 1. 0 means "before the first entry"."""

BEFORE_FIRST = Seq(0)

LOCAL = Tenant("local")
"""The tenant of requests for which no credential is needed."""

# A valid subject token. `*`, `>` and `.` would be wildcards or token separators (PROTOCOL R3).
TOKEN = re.compile(r"[a-z0-9_-]{1,64}")
# Names that clients give to sessions and projects: UUIDs, nanoids, `user:42.main`. Not `.` and `..`, which HTTP clients
# remove from paths (RFC 3986, 5.2.4): such a session could be created, but neither read nor deleted.
NAME = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._:-]{1,128}")
# The limit of a turn's `user`. Anthropic's `metadata.user_id` has another one (PROTOCOL R39).
USER_CHARS_MAX = 512
# Stricter than int(), which accepts '+1', '1_0', ' 1 ' and Arabic digits.
CURSOR = re.compile(r"[0-9]{1,19}", re.ASCII)
SEQ_MAX = 2**63 - 1


def new_id() -> str:
    """Returns a UUIDv7 (RFC 9562, section 5.7): 48 bits of milliseconds, then random bits. Sorts by time."""
    return _uuid7(time.time_ns() // 1_000_000, secrets.randbits(80))


def child_id(batch: TurnId, index: int) -> TurnId:
    """Returns the id of a batch's child turn number `index`, from 0. Deterministic (PROTOCOL R63); a UUIDv7."""
    milliseconds = int(batch.replace("-", "")[:12], 16)
    hashed = hashlib.sha256(f"{batch}:{index}".encode()).digest()
    return TurnId(_uuid7(milliseconds, int.from_bytes(hashed[:10], "big")))


def is_child_id(turn: TurnId, batch: TurnId) -> bool:
    """Returns whether `turn`, whose parent is `batch`, is its child turn: only such ids have the parent's time."""
    return turn[:13] == batch[:13]


def _uuid7(milliseconds: int, random: int) -> str:
    version_and_variant = (0x7 << 76) | (0b10 << 62)
    keep = ~((0xF << 76) | (0b11 << 62))
    text = f"{(milliseconds << 80) | (random & keep & (2**80 - 1)) | version_and_variant:032x}"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def is_token(text: str) -> bool:
    """Returns whether `text` can be a part of a NATS subject: 1 to 64 of the characters a-z, 0-9, `_` and `-`."""
    return TOKEN.fullmatch(text) is not None


def is_session_name(text: str) -> bool:
    """Returns whether `text` is a valid session or project name. Such names are never part of a subject."""
    return NAME.fullmatch(text) is not None


def is_user(text: str) -> bool:
    """Returns whether `text` can name an end user: an email address, a UUID, or a login service's name for the user."""
    return 1 <= len(text) <= USER_CHARS_MAX and text.isprintable()


def parse_cursor(text: str) -> Seq:
    """Parses the cursor that a client sent. Raises CursorUnknown if it cannot be a stream sequence."""
    if CURSOR.fullmatch(text) is None or int(text) > SEQ_MAX:
        raise CursorUnknown("the cursor is not an event id of this server: send back an `id:` as you received it")
    return Seq(int(text))


def folder_name(name: str) -> str:
    """Returns a safe folder name for a tenant or a project: a token as it is, any other name as its hash."""
    return name if is_token(name) else f"={hashlib.sha256(name.encode()).hexdigest()[:40]}"
