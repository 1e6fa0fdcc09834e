"""The names of everything in NATS. Subjects are built here and nowhere else, so that no client's text becomes one."""

from typing import NamedTuple

from tailrace.proto.ids import Tenant, TurnId, is_token

STREAM = "TURNS"
BODIES = "BODIES"
CLAIMS = "CLAIMS"
KEYS = "KEYS"
LIMITS = "LIMITS"
BUDGETS = "BUDGETS"
SLOTS = "SLOTS"
SECRETS = "SECRETS"
LOGINS = "LOGINS"
GENERATORS = "generators"
PERSISTENCE = "persistence"
WEBHOOKS = "webhooks"

EVERY_TURN = "turns.>"
EVERY_LIVE = "live.>"
EVERY_REQUEST = "turns.*.*.request"
EVERY_END = "turns.*.*.end"
EVERY_BLOB = "bodies.>"
# A bucket is a stream, and its names are subjects (ADR-8 of nats-architecture-and-design).
KEYS_STREAM = "KV_KEYS"
CLAIMS_STREAM = "KV_CLAIMS"
EVERY_KEY = "$KV.KEYS.>"
# Where the server republishes what it has stored of a key.
EVERY_LIVE_KEY = "keys.>"
EVERY_LIMIT = "limits.>"
EVERY_BUDGET = "budgets.>"
EVERY_SLOT = "slots.>"


class TurnKey(NamedTuple):
    """A turn's full name: nobody can name a turn without naming whose it is."""

    tenant: Tenant
    turn: TurnId


def entry(key: TurnKey, kind: str) -> str:
    return f"turns.{_token(key.tenant)}.{_token(key.turn)}.{_token(kind)}"


def entries(key: TurnKey) -> str:
    """All entries of one turn; also, byte for byte, the subject of its fence (PROTOCOL R8)."""
    return f"turns.{_token(key.tenant)}.{_token(key.turn)}.>"


def probe(name: TurnId) -> str:
    """Where it is tried whether the log takes an entry: of no turn and no kind that there is (PROTOCOL R68)."""
    return f"turns._.{_token(name)}.probe"


def live(key: TurnKey) -> str:
    """Where the server republishes what it has stored of one turn."""
    return f"live.{_token(key.tenant)}.{_token(key.turn)}.>"


def live_end(key: TurnKey) -> str:
    """Where a turn's `end` is republished."""
    return f"live.{_token(key.tenant)}.{_token(key.turn)}.end"


def blob(tenant: Tenant, sha256: str) -> str:
    """The mark that a blob is stored, after all of its chunks (PROTOCOL R33)."""
    return f"bodies.{_token(tenant)}.{_token(sha256)}"


def chunk(tenant: Tenant, sha256: str, number: int) -> str:
    return f"{blob(tenant, sha256)}.{number}"


def chunks(tenant: Tenant, sha256: str) -> str:
    """All chunks of one blob, and not its mark."""
    return f"{blob(tenant, sha256)}.*"


def limit(tenant: Tenant, owner: str, what: str, window: str) -> str:
    """The counter of `what` in one window of time; `owner` is the tenant itself, or one of its keys (PROTOCOL R37)."""
    return f"limits.{_token(tenant)}.{_token(owner)}.{_token(what)}.{_token(window)}"


def budget(tenant: Tenant, owner: str, what: str, period: str) -> str:
    """The counter of `what` in a day or a month."""
    return f"budgets.{_token(tenant)}.{_token(owner)}.{_token(what)}.{_token(period)}"


def slot(tenant: Tenant, owner: str, what: str, number: int) -> str:
    """One of the places that an owner has for `what` at once."""
    return f"slots.{_token(tenant)}.{_token(owner)}.{_token(what)}.{number}"


def slots(tenant: Tenant, owner: str, what: str) -> str:
    return f"slots.{_token(tenant)}.{_token(owner)}.{_token(what)}.*"


def tombstone(key: TurnKey) -> str:
    """Where it stands that a turn was deleted: in the bucket of the claims, none of which has a dot in its name."""
    return f"$KV.{CLAIMS}.deleted.{_token(key.tenant)}.{_token(key.turn)}"


def blob_pin(tenant: Tenant, holder: str, sha256: str) -> str:
    """Where it stands that somebody is about to refer to a blob; in the same bucket (PROTOCOL R34)."""
    return f"$KV.{CLAIMS}.held.{_token(tenant)}.{_token(holder)}.{_token(sha256)}"


def blob_pins_by(tenant: Tenant, holder: str) -> str:
    return f"$KV.{CLAIMS}.held.{_token(tenant)}.{_token(holder)}.*"


def blob_pins_of(tenant: Tenant, sha256: str) -> str:
    return f"$KV.{CLAIMS}.held.{_token(tenant)}.*.{_token(sha256)}"


def query(tenant: Tenant, name: str) -> str:
    return f"queries.{_token(tenant)}.{_token(name)}"


def every_query(name: str) -> str:
    return f"queries.*.{_token(name)}"


def health(role: str) -> str:
    return f"health.{_token(role)}"


# Where a generator asks the others which of them would make a call beside its own (PROTOCOL R51).
HEDGE_OFFERS = "hedges"


def hedge(place: str) -> str:
    """Where one generator is given what it has offered to take."""
    return f"hedges.{_token(place)}"


EVERY_HEDGE = "hedges.*"


def presence(key: TurnKey) -> str:
    """Where a gateway asks the others whether anybody reads a turn."""
    return f"readers.{_token(key.tenant)}.{_token(key.turn)}"


EVERY_PRESENCE = "readers.*.*"


def parse(subject: str) -> tuple[TurnKey, str]:
    """The turn and the kind of entry that a stored subject names; raises ValueError for any other subject."""
    root, tenant, turn, kind = subject.split(".", 3)
    if root != "turns":
        raise ValueError(f"{subject!r} is not the subject of an entry")
    return TurnKey(Tenant(tenant), TurnId(turn)), kind


def tenant_of(subject: str) -> str:
    """The tenant that a subject is of; of what is no tenant's, the bucket."""
    return subject.split(".", 2)[1]


def _token(text: str) -> str:
    # A wildcard is accepted by the server in a publish and matches everything in a read, so it must never get there.
    if not is_token(text):
        raise ValueError(f"{text!r} cannot be a token of a subject")
    return text
