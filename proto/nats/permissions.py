"""What each process may say and hear in NATS, and no more: an account and a user for each role. Pure; `deploy` tells
the server.

The log has an account of its own, and so has each role; what a role may ask of another account is imported there, and
nothing else leads out. nats-server sends an answer to whatever subject its question names, and asks for nobody's right
to it: in an account of its own that reaches nobody (ADR 23). The user's rights say the same once more, for a mistake is
then refused and said, and not met with silence.

A new subject has its row here or is refused, which the first test notices.
"""

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from tailrace.proto.batch_records import GetBatch, ListBatches, ListBatchTurns
from tailrace.proto.ids import is_token
from tailrace.proto.model_records import CANCEL_MESSAGE_BATCH, COUNT_TOKENS, MODELS
from tailrace.proto.records import (
    GetAncestry,
    GetContext,
    GetLastTurn,
    GetSession,
    GetTurn,
    ListSessions,
    ListSessionTurns,
)
from tailrace.proto.resources import (
    CreateProject,
    CreateSession,
    DeleteResource,
    GetProject,
    GetStats,
    GetUsage,
    ListBranches,
    ListProjects,
    RenameSession,
)
from tailrace.proto.subjects import (
    BODIES,
    CLAIMS,
    CLAIMS_STREAM,
    EVERY_BLOB,
    EVERY_BUDGET,
    EVERY_END,
    EVERY_HEDGE,
    EVERY_LIMIT,
    EVERY_LIVE,
    EVERY_LIVE_KEY,
    EVERY_PRESENCE,
    EVERY_REQUEST,
    EVERY_SLOT,
    GENERATORS,
    HEDGE_OFFERS,
    KEYS,
    KEYS_STREAM,
    LOGINS,
    PERSISTENCE,
    SECRETS,
    SLOTS,
    STREAM,
    WEBHOOKS,
    every_query,
    health,
)

GATEWAY = "gateway"
# Who sets NATS up, makes keys and asks what was used: `up` and the commands. It stores no entry, and reads all of them.
ADMIN = "admin"

# The account that has the log; whoever is of no role is of this one, too.
LOG = "TAILRACE"

API = "$JS.API"
# How everything is set up: each process looks at that before it begins.
# Who imports INFO is one of those accounts that have JetStream elsewhere. Without it nats-server itself answers
# everything below ASK in an account that has none, with "not enabled" (Account.serviceImportShadowed).
READ_CONFIG = (f"{API}.INFO", f"{API}.STREAM.INFO.*", f"{API}.CONSUMER.INFO.{STREAM}.*")
READ_TURNS = (f"{API}.DIRECT.GET.{STREAM}", f"{API}.STREAM.MSG.GET.{STREAM}")
READ_BLOBS = (f"{API}.DIRECT.GET.{BODIES}.>", f"{API}.STREAM.MSG.GET.{BODIES}")
READ_CLAIMS = f"{API}.STREAM.MSG.GET.{CLAIMS_STREAM}"
PURGE_TURNS = f"{API}.STREAM.PURGE.{STREAM}"
COUNT = (EVERY_LIMIT, EVERY_BUDGET, f"{API}.STREAM.MSG.DELETE.{SLOTS}")
GENERATOR_QUERIES = tuple(map(every_query, (MODELS, COUNT_TOKENS, CANCEL_MESSAGE_BATCH)))
PERSISTENCE_QUERIES = tuple(
    every_query(question.query)
    for question in (
        *(GetTurn, GetSession, ListSessions, ListSessionTurns, GetAncestry, GetContext, GetLastTurn),
        *(
            GetProject,
            ListProjects,
            ListBranches,
            GetUsage,
            GetStats,
            CreateSession,
            RenameSession,
            CreateProject,
            DeleteResource,
        ),
        *(GetBatch, ListBatches, ListBatchTurns),
    )
)
# How `nats micro ls` finds who answers questions.
DISCOVERY = "$SRV.>"


class Rights(msgspec.Struct, frozen=True):
    """Subjects with their wildcards. What it says and hears itself is among the processes of that role."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    serves: tuple[str, ...] = ()
    """What it hears that others ask."""
    can_reply: bool = False
    """It may also answer, once, what it was asked."""


class Import(NamedTuple):
    """That a subject leads out of one account into another, or, of a feed, is heard there."""

    account: str
    """Whose the subject is."""
    subject: str
    is_stream: bool = False


def inbox_prefix(user: str) -> str:
    """Where a user is answered, and no other hears it: the prefix of its inboxes."""
    return f"_INBOX.{user}" if is_token(user) else "_INBOX"


def consume_subjects(durable: str) -> tuple[str, ...]:
    """To be handed what a consumer has, and to acknowledge it."""
    return (f"{API}.CONSUMER.MSG.NEXT.{STREAM}.{durable}", f"$JS.ACK.{STREAM}.{durable}.>")


RIGHTS: Mapping[str, Rights] = {
    GATEWAY: Rights(
        publish=(
            EVERY_REQUEST,
            EVERY_END,
            "turns._.*.probe",
            EVERY_BLOB,
            EVERY_SLOT,
            *COUNT,
            # Claims of idempotency keys, holds, and which tickets were used. What was deleted says persistence.
            f"$KV.{CLAIMS}.*",
            f"$KV.{CLAIMS}.held.>",
            f"$KV.{CLAIMS}.ticket.*",
            f"$KV.{SECRETS}.*",
            f"$KV.{LOGINS}.*",
            *GENERATOR_QUERIES,
            *PERSISTENCE_QUERIES,
            health(GENERATORS),
            health(PERSISTENCE),
            EVERY_PRESENCE,
            # Gateways are asked by gateways alone. `can_reply` would let one answer at whatever its own question names.
            f"{inbox_prefix(GATEWAY)}.>",
            *READ_CONFIG,
            *READ_TURNS,
            *READ_BLOBS,
            READ_CLAIMS,
            f"{API}.DIRECT.GET.{SLOTS}",
            f"{API}.DIRECT.GET.{KEYS_STREAM}",
            f"{API}.STREAM.MSG.GET.KV_{SECRETS}",
            f"{API}.STREAM.MSG.GET.KV_{LOGINS}",
            f"{API}.STREAM.PURGE.{CLAIMS_STREAM}",
            # A turn that is deleted, and a probe that is taken back.
            PURGE_TURNS,
            f"{API}.STREAM.MSG.DELETE.{STREAM}",
        ),
        subscribe=(f"{inbox_prefix(GATEWAY)}.>", EVERY_LIVE, EVERY_LIVE_KEY, EVERY_PRESENCE),
    ),
    GENERATORS: Rights(
        publish=(
            # A batch's inputs are asked by who carries it.
            EVERY_REQUEST,
            "turns.*.*.attempt",
            "turns.*.*.event",
            "turns.*.*.progress",
            EVERY_END,
            *COUNT,
            HEDGE_OFFERS,
            EVERY_HEDGE,
            *READ_CONFIG,
            *READ_TURNS,
            *READ_BLOBS,
            READ_CLAIMS,
            *consume_subjects(GENERATORS),
        ),
        subscribe=(
            f"{inbox_prefix(GENERATORS)}.>",
            EVERY_LIVE,
            HEDGE_OFFERS,
            EVERY_HEDGE,
        ),
        serves=(health(GENERATORS), *GENERATOR_QUERIES, DISCOVERY),
        can_reply=True,
    ),
    PERSISTENCE: Rights(
        publish=(
            # A blob that is to be purged is marked so before.
            "bodies.*.*",
            f"{API}.STREAM.PURGE.{BODIES}",
            f"$KV.{CLAIMS}.deleted.>",
            *READ_CONFIG,
            *READ_TURNS,
            *READ_BLOBS,
            READ_CLAIMS,
            PURGE_TURNS,
            *consume_subjects(PERSISTENCE),
            *consume_subjects(WEBHOOKS),
            f"{API}.CONSUMER.RESET.{STREAM}.{PERSISTENCE}",
        ),
        subscribe=(f"{inbox_prefix(PERSISTENCE)}.>",),
        serves=(health(PERSISTENCE), *PERSISTENCE_QUERIES, DISCOVERY),
        can_reply=True,
    ),
    ADMIN: Rights(
        publish=(f"{API}.>", f"$KV.{KEYS}.*", *GENERATOR_QUERIES, *PERSISTENCE_QUERIES, DISCOVERY),
        subscribe=(f"{inbox_prefix(ADMIN)}.>",),
    ),
}


def account(user: str) -> str:
    """Whose inboxes, questions and answers are no other's."""
    return f"{LOG}_{user.upper()}" if user in RIGHTS and user != ADMIN else LOG


ACCOUNTS = tuple(dict.fromkeys((LOG, *map(account, RIGHTS))))
# What the log's account tells without being asked.
FEEDS = (EVERY_LIVE, EVERY_LIVE_KEY)


def imports_of(user: str) -> list[Import]:
    """What leads out of a user's account, and nothing else does."""
    rights = RIGHTS[user]
    asked = [
        Import(whose, subject)
        for subject in rights.publish
        if subject not in rights.subscribe
        for whose in ([account(one) for one in RIGHTS if subject in RIGHTS[one].serves] or [LOG])
    ]
    heard = [Import(LOG, subject, is_stream=True) for subject in rights.subscribe if subject in FEEDS]
    return [way for way in (*asked, *heard) if way.account != account(user)]


def has_many_replies(subject: str) -> bool:
    """Whether there may be more than one message in answer to a question. The last of one subject is one."""
    is_read = subject.startswith(f"{API}.DIRECT.GET.") and not subject.endswith(".>")
    return is_read or subject.startswith(f"{API}.CONSUMER.MSG.NEXT.") or subject == DISCOVERY
