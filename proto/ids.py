"""Names that only the server makes: tenants, turns, sessions; and the numbers that the log makes: sequences."""

import hashlib
import re
import secrets
import time
from typing import NewType

from tailrace.proto.errors import CursorUnknown

Tenant = NewType("Tenant", str)
TurnId = NewType("TurnId", str)
SessionId = NewType("SessionId", str)

Seq = NewType("Seq", int)
"""The sequence of an entry in the stream: starts at 1; 0 stands for "before the first"."""

BEFORE_FIRST = Seq(0)

# What may be a token of a subject. `*`, `>` and `.` would become wildcards or further tokens (PROTOCOL R3).
TOKEN = re.compile(r"[a-z0-9_-]{1,64}")
# What clients call their conversations: UUIDs, nanoids, `user:42.main`.
NAME = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# int() takes '+1', '1_0', ' 1 ' and Arabic digits. The stream's own numbers are all this says.
CURSOR = re.compile(r"[0-9]{1,19}", re.ASCII)
SEQ_MAX = 2**63 - 1


def new_id() -> str:
    """A UUIDv7 (RFC 9562 section 5.7): 48 bits of milliseconds, then random bits. Sorts by time, never used twice."""
    return _uuid7(time.time_ns() // 1_000_000, secrets.randbits(80))


def child_id(batch: TurnId, index: int) -> TurnId:
    """The id of a batch's turn number `index`, from 0: a UUIDv7, and the same for whoever asks (PROTOCOL R63)."""
    milliseconds = int(batch.replace("-", "")[:12], 16)
    hashed = hashlib.sha256(f"{batch}:{index}".encode()).digest()
    return TurnId(_uuid7(milliseconds, int.from_bytes(hashed[:10], "big")))


def _uuid7(milliseconds: int, random: int) -> str:
    version_and_variant = (0x7 << 76) | (0b10 << 62)
    keep = ~((0xF << 76) | (0b11 << 62))
    text = f"{(milliseconds << 80) | (random & keep & (2**80 - 1)) | version_and_variant:032x}"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def is_token(text: str) -> bool:
    return TOKEN.fullmatch(text) is not None


def is_session_name(text: str) -> bool:
    """Whether a client may call a session, or a project, by that name. It is never part of a subject."""
    return NAME.fullmatch(text) is not None


def parse_cursor(text: str) -> Seq:
    """The cursor that a reader sent back; raises CursorUnknown when it is no number that the log could have made."""
    if CURSOR.fullmatch(text) is None or int(text) > SEQ_MAX:
        raise CursorUnknown("the cursor is not a number that this server gave out: send back an `id:` as it came")
    return Seq(int(text))
