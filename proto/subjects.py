"""Names of streams, buckets, consumers and subjects in NATS. Subjects are built here, from checked tokens."""

from datetime import UTC, datetime
from functools import lru_cache

from tailrace.proto.ids import TOKEN, Tenant, TurnId, TurnKey

# The streams: the log, blobs, counters of rates, counters of budgets, slots, the audit log.
STREAM = "TURNS"
BODIES = "BODIES"
LIMITS = "LIMITS"
BUDGETS = "BUDGETS"
SLOTS = "SLOTS"
AUDIT = "AUDIT"
# The KV buckets: claims, pins, tombstones and used tickets; API keys and tenants' limits; the secret that signs tokens;
# logins.
CLAIMS = "CLAIMS"
KEYS = "KEYS"
SECRETS = "SECRETS"
LOGINS = "LOGINS"
# The durable consumers of the log. The first two are also the roles of the processes that use them.
GENERATORS = "generators"
PERSISTENCE = "persistence"
WEBHOOKS = "webhooks"

EVERY_TURN = "turns.>"
EVERY_LIVE = "live.>"
EVERY_REQUEST = "turns.*.*.request"
EVERY_END = "turns.*.*.end"
EVERY_BLOB = "bodies.>"
EVERY_EVENT_BLOB = "bodies.*.events.>"
# A KV bucket is a stream, and its keys are subjects (ADR-8 of nats-architecture-and-design).
KEYS_STREAM = "KV_KEYS"
CLAIMS_STREAM = "KV_CLAIMS"
EVERY_KEY = "$KV.KEYS.>"
# Where the server republishes stored API keys.
EVERY_LIVE_KEY = "keys.>"
# The beginning of the names of tenants' limits in the bucket KEYS.
LIMITS_PREFIX = "tenant."
USERS_PREFIX = "users."
EVERY_LIMIT = "limits.>"
EVERY_BUDGET = "budgets.>"
EVERY_SLOT = "slots.>"
EVERY_AUDIT = "audit.*"
EVERY_ERASURE_NOTE = "$KV.CLAIMS.unstored.>"
EVERY_TOMBSTONE = "$KV.CLAIMS.deleted.>"
EVERY_DAMAGE_NOTE = "$KV.CLAIMS.damaged.>"
EVERY_STEP_RECORD = "$KV.CLAIMS.steps.>"
EVERY_EXTENSION_MARK = "$KV.CLAIMS.extended.*"
# The write probes of all processes (PROTOCOL R68). No idempotency key has this name: theirs are hexadecimal.
CLAIMS_PROBE = "$KV.CLAIMS.probe"


def entry(key: TurnKey, kind: str) -> str:
    """Returns the subject of the turn's entries of one kind."""
    return f"turns.{_token(key.tenant)}.{_token(key.turn)}.{_token(kind)}"


@lru_cache(maxsize=4096)
def entries(key: TurnKey) -> str:
    """Returns the filter of all entries of a turn; also the subject of its fence (PROTOCOL R8)."""
    return f"turns.{_token(key.tenant)}.{_token(key.turn)}.>"


def entries_of_tenant(tenant: Tenant) -> str:
    """Returns the filter of all entries of a tenant."""
    return f"turns.{_token(tenant)}.>"


def requests_of_tenant(tenant: Tenant) -> str:
    """Returns the filter of the `request` of each turn of a tenant."""
    return f"turns.{_token(tenant)}.*.request"


def requests(turn: TurnId) -> str:
    """Returns the filter of the `request` of the turn with this id, of any tenant."""
    return f"turns.*.{_token(turn)}.request"


def probe(name: TurnId) -> str:
    """Returns the subject of a write probe, which belongs to no turn and no kind of entry (PROTOCOL R68)."""
    return f"turns._.{_token(name)}.probe"


def live(key: TurnKey) -> str:
    """Returns the filter of a turn's live feed, where the server republishes stored entries."""
    return f"live.{_token(key.tenant)}.{_token(key.turn)}.>"


def live_requests(tenant: Tenant) -> str:
    """Returns the filter of the subjects on which the requests of a tenant are republished."""
    return f"live.{_token(tenant)}.*.request"


def blob(tenant: Tenant, sha256: str) -> str:
    """Returns the subject of a blob's mark, which is stored after all of its chunks (PROTOCOL R33)."""
    return f"bodies.{_token(tenant)}.{_token(sha256)}"


def chunk(tenant: Tenant, sha256: str, number: int) -> str:
    """Returns the subject of a blob's chunk; `number` begins at 0."""
    return f"{blob(tenant, sha256)}.{number}"


def chunks(tenant: Tenant, sha256: str) -> str:
    """Returns the filter of a blob's chunks, without its mark."""
    return f"{blob(tenant, sha256)}.*"


def event_chunk(key: TurnKey, name: str, number: int) -> str:
    """Returns the subject of a chunk of the blob `name`, an event of the turn (PROTOCOL R120)."""
    return f"{event_chunks(key)[:-1]}{_token(name)}.{number}"


def event_chunks(key: TurnKey) -> str:
    """Returns the filter of the chunks of all events of a turn."""
    return f"bodies.{_token(key.tenant)}.events.{_token(key.turn)}.>"


def limit(tenant: Tenant, owner: str, what: str, window: str) -> str:
    """Returns the subject of a counter; `owner`: the tenant or one of its keys; `what`: what is counted (R37)."""
    return f"limits.{_token(tenant)}.{_token(owner)}.{_token(what)}.{_token(window)}"


def budget(tenant: Tenant, owner: str, what: str, period: str) -> str:
    """Like `limit`, for a counter of a day or month."""
    return f"budgets.{_token(tenant)}.{_token(owner)}.{_token(what)}.{_token(period)}"


def budget_at(budget: str, at: datetime) -> str:
    """Returns the subject of a budget of dollars, such as `budget`, for the day or month (UTC) of `at`."""
    counter, _, period = budget.rpartition(".")
    return f"{counter}.{at.astimezone(UTC).date().isoformat()[: len(period)]}"


def given_back(budget: str) -> str:
    """Returns the subject of the counter of what gateways have given back to `budget` (PROTOCOL R37)."""
    return _beside(budget, "back")


def recorded_cost(budget: str) -> str:
    """Returns the subject of the counter that repeats what the database has recorded for `budget` (PROTOCOL R148)."""
    return _beside(budget, "recorded")


def lost_cost(budget: str) -> str:
    """Returns the subject of the counter of recorded costs of `budget` that the database has lost (PROTOCOL R148)."""
    return _beside(budget, "lost")


def _beside(budget: str, kind: str) -> str:
    counter, _, period = budget.rpartition(".")
    return f"{counter}_{kind}.{period}"


def slot(tenant: Tenant, owner: str, what: str, number: int) -> str:
    """Returns the subject of an owner's slot number `number` for `what`."""
    return f"slots.{_token(tenant)}.{_token(owner)}.{_token(what)}.{number}"


def slots(tenant: Tenant, owner: str, what: str) -> str:
    """Returns the filter for all slots of one kind that the owner holds."""
    return f"slots.{_token(tenant)}.{_token(owner)}.{_token(what)}.*"


def every_slot(what: str) -> str:
    """Returns the filter for all slots of one kind."""
    return f"slots.*.*.{_token(what)}.*"


def audit(action: str) -> str:
    """Returns the subject of the entries of one action in the audit log."""
    return f"audit.{_token(action)}"


def limits_of_tenant(tenant: Tenant) -> str:
    """Returns the name of a tenant's limits in the bucket KEYS. Ids of keys have no dot."""
    return LIMITS_PREFIX + _token(tenant)


def tenant_of_limits(name: str) -> Tenant | None:
    """Returns the tenant whose limits have this name in the bucket KEYS; None for a key."""
    return Tenant(name.removeprefix(LIMITS_PREFIX)) if name.startswith(LIMITS_PREFIX) else None


def users_of_tenant(tenant: Tenant) -> str:
    """Returns the name in the bucket KEYS of the setting whether a tenant's users are private."""
    return USERS_PREFIX + _token(tenant)


def tenant_of_users(name: str) -> Tenant | None:
    """Returns the tenant whose setting of users has this name in the bucket KEYS; None for any other record."""
    return Tenant(name.removeprefix(USERS_PREFIX)) if name.startswith(USERS_PREFIX) else None


def tombstone(key: TurnKey) -> str:
    """Returns the subject of a deleted turn's tombstone, in the bucket CLAIMS, whose idempotency keys have no dot."""
    return f"$KV.{CLAIMS}.deleted.{_token(key.tenant)}.{_token(key.turn)}"


def deletion_mark(key: TurnKey) -> str:
    """Returns the subject of the mark of a turn that is being deleted, in the bucket CLAIMS (PROTOCOL R35).

    The mark is one token, like the mark of an idempotency key, so that a gateway with the NATS permissions of an
    older Tailrace may write it. No idempotency key has this name: theirs are hexadecimal.
    """
    return f"$KV.{CLAIMS}.deleting={_token(key.tenant)}={_token(key.turn)}"


def erasure_note(key: TurnKey) -> str:
    """Returns the subject of the note that a turn is to be erased, in the bucket CLAIMS (PROTOCOL R109)."""
    return f"$KV.{CLAIMS}.unstored.{_token(key.tenant)}.{_token(key.turn)}"


def damage_note(key: TurnKey) -> str:
    """Returns the subject of the note that the log has lost entries of a turn, in the bucket CLAIMS (PROTOCOL R144)."""
    return f"$KV.{CLAIMS}.damaged.{_token(key.tenant)}.{_token(key.turn)}"


def step_record(key: TurnKey) -> str:
    """Returns the name, in the bucket CLAIMS, of what a running turn has reserved in steps (PROTOCOL R149)."""
    return f"steps.{_token(key.tenant)}.{_token(key.turn)}"


def extension_mark(tenant: Tenant) -> str:
    """Returns the subject of the mark that leases of a tenant's webhooks are extended (PROTOCOL R45)."""
    return f"$KV.{CLAIMS}.extended.{_token(tenant)}"


def blob_pin(tenant: Tenant, holder: str, sha256: str) -> str:
    """Returns the subject of a pin: `holder` is about to refer to the blob. In the bucket CLAIMS (PROTOCOL R34)."""
    return f"$KV.{CLAIMS}.held.{_token(tenant)}.{_token(holder)}.{_token(sha256)}"


def blob_pins_by(tenant: Tenant, holder: str) -> str:
    """Returns the filter for all pins of one holder, such as a turn."""
    return f"$KV.{CLAIMS}.held.{_token(tenant)}.{_token(holder)}.*"


def blob_pins_of(tenant: Tenant, sha256: str) -> str:
    """Returns the filter for all pins of one blob, by any holder."""
    return f"$KV.{CLAIMS}.held.{_token(tenant)}.*.{_token(sha256)}"


def query(tenant: Tenant, name: str) -> str:
    """Returns the subject on which the query `name` of a tenant is sent."""
    return f"queries.{_token(tenant)}.{_token(name)}"


def every_query(name: str) -> str:
    """Returns the filter for one kind of query from every tenant."""
    return f"queries.*.{_token(name)}"


def health(role: str) -> str:
    """Returns the subject on which all processes of a role are asked for their health."""
    return f"health.{_token(role)}"


def holding(generator: str) -> str:
    """Returns the subject on which one generator is asked what it holds (PROTOCOL R151).

    The name is a part of a setting, and may have any characters.
    """
    return f"peers.holding.{generator.encode().hex()}"


# The notices of generators to one another, and every subject of them.
PEER_NOTICES = "peers.notices"
EVERY_PEER = "peers.>"


def presence(key: TurnKey) -> str:
    """Returns the subject on which a gateway asks the others whether a turn has readers."""
    return f"readers.{_token(key.tenant)}.{_token(key.turn)}"


EVERY_PRESENCE = "readers.*.*"


def reader_query(key: TurnKey) -> str:
    """Returns the subject on which the administrator asks all gateways for the readers of a turn (PROTOCOL R76)."""
    return f"reader_queries.{_token(key.tenant)}.{_token(key.turn)}"


EVERY_READER_QUERY = "reader_queries.*.*"


def reader_reply(key: TurnKey) -> str:
    """Returns the subject on which each gateway answers a reader query."""
    return f"reader_replies.{_token(key.tenant)}.{_token(key.turn)}"


EVERY_READER_REPLY = "reader_replies.*.*"


def parse(subject: str) -> tuple[TurnKey, str]:
    """Returns the turn and the kind of entry of a stored subject. Raises ValueError for other subjects."""
    root, tenant, turn, kind = subject.split(".", 3)
    if root != "turns":
        raise ValueError(f"{subject!r} is not the subject of an entry")
    return TurnKey(Tenant(tenant), TurnId(turn)), kind


def _token(text: str) -> str:
    # The server accepts a wildcard in a publish; in a read, the wildcard matches everything.
    if TOKEN.fullmatch(text) is None:
        raise ValueError(f"{text!r} is not a valid subject token: it must match [a-z0-9_-]{{1,64}}")
    return text
