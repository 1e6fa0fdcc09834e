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

ASK = "$JS.API"
# How everything is set up: each process looks at that before it begins.
# Who imports INFO is one of those accounts that have JetStream elsewhere. Without it nats-server itself answers
# everything below ASK in an account that has none, with "not enabled" (Account.serviceImportShadowed).
LOOK = (f"{ASK}.INFO", f"{ASK}.STREAM.INFO.*", f"{ASK}.CONSUMER.INFO.{STREAM}.*")
READ_TURNS = (f"{ASK}.DIRECT.GET.{STREAM}", f"{ASK}.STREAM.MSG.GET.{STREAM}")
READ_BLOBS = (f"{ASK}.DIRECT.GET.{BODIES}.>", f"{ASK}.STREAM.MSG.GET.{BODIES}")
READ_CLAIMS = f"{ASK}.STREAM.MSG.GET.{CLAIMS_STREAM}"
PURGE_TURNS = f"{ASK}.STREAM.PURGE.{STREAM}"
COUNT = (EVERY_LIMIT, EVERY_BUDGET, f"{ASK}.STREAM.MSG.DELETE.{SLOTS}")
OF_GENERATORS = tuple(map(every_query, (MODELS, COUNT_TOKENS, CANCEL_MESSAGE_BATCH)))
OF_PERSISTENCE = tuple(
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
    answers: tuple[str, ...] = ()
    """What it hears that others ask."""
    is_asked: bool = False
    """It may also answer, once, what it was asked."""


class Way(NamedTuple):
    """That a subject leads out of one account into another, or, of a feed, is heard there."""

    account: str
    """Whose the subject is."""
    subject: str
    is_feed: bool = False


def inbox(user: str) -> str:
    """Where a user is answered, and no other hears it: the prefix of its inboxes."""
    return f"_INBOX.{user}" if is_token(user) else "_INBOX"


def deliveries(durable: str) -> tuple[str, ...]:
    """To be handed what a consumer has, and to acknowledge it."""
    return (f"{ASK}.CONSUMER.MSG.NEXT.{STREAM}.{durable}", f"$JS.ACK.{STREAM}.{durable}.>")


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
            *OF_GENERATORS,
            *OF_PERSISTENCE,
            health(GENERATORS),
            health(PERSISTENCE),
            EVERY_PRESENCE,
            # Gateways are asked by gateways alone. `is_asked` would let one answer at whatever its own question names.
            f"{inbox(GATEWAY)}.>",
            *LOOK,
            *READ_TURNS,
            *READ_BLOBS,
            READ_CLAIMS,
            f"{ASK}.DIRECT.GET.{SLOTS}",
            f"{ASK}.DIRECT.GET.{KEYS_STREAM}",
            f"{ASK}.STREAM.MSG.GET.KV_{SECRETS}",
            f"{ASK}.STREAM.MSG.GET.KV_{LOGINS}",
            f"{ASK}.STREAM.PURGE.{CLAIMS_STREAM}",
            # A turn that is deleted, and a probe that is taken back.
            PURGE_TURNS,
            f"{ASK}.STREAM.MSG.DELETE.{STREAM}",
        ),
        subscribe=(f"{inbox(GATEWAY)}.>", EVERY_LIVE, EVERY_LIVE_KEY, EVERY_PRESENCE),
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
            *LOOK,
            *READ_TURNS,
            *READ_BLOBS,
            READ_CLAIMS,
            *deliveries(GENERATORS),
        ),
        subscribe=(
            f"{inbox(GENERATORS)}.>",
            EVERY_LIVE,
            HEDGE_OFFERS,
            EVERY_HEDGE,
        ),
        answers=(health(GENERATORS), *OF_GENERATORS, DISCOVERY),
        is_asked=True,
    ),
    PERSISTENCE: Rights(
        publish=(
            # A blob that is to be purged is marked so before.
            "bodies.*.*",
            f"{ASK}.STREAM.PURGE.{BODIES}",
            f"$KV.{CLAIMS}.deleted.>",
            *LOOK,
            *READ_TURNS,
            *READ_BLOBS,
            READ_CLAIMS,
            PURGE_TURNS,
            *deliveries(PERSISTENCE),
            *deliveries(WEBHOOKS),
            f"{ASK}.CONSUMER.RESET.{STREAM}.{PERSISTENCE}",
        ),
        subscribe=(f"{inbox(PERSISTENCE)}.>",),
        answers=(health(PERSISTENCE), *OF_PERSISTENCE, DISCOVERY),
        is_asked=True,
    ),
    ADMIN: Rights(
        publish=(f"{ASK}.>", f"$KV.{KEYS}.*", *OF_GENERATORS, *OF_PERSISTENCE, DISCOVERY),
        subscribe=(f"{inbox(ADMIN)}.>",),
    ),
}


def account(user: str) -> str:
    """Whose inboxes, questions and answers are no other's."""
    return f"{LOG}_{user.upper()}" if user in RIGHTS and user != ADMIN else LOG


ACCOUNTS = tuple(dict.fromkeys((LOG, *map(account, RIGHTS))))
# What the log's account tells without being asked.
FEEDS = (EVERY_LIVE, EVERY_LIVE_KEY)


def ways_of(user: str) -> list[Way]:
    """What leads out of a user's account, and nothing else does."""
    rights = RIGHTS[user]
    asked = [
        Way(whose, subject)
        for subject in rights.publish
        if subject not in rights.subscribe
        for whose in ([account(one) for one in RIGHTS if subject in RIGHTS[one].answers] or [LOG])
    ]
    heard = [Way(LOG, subject, is_feed=True) for subject in rights.subscribe if subject in FEEDS]
    return [way for way in (*asked, *heard) if way.account != account(user)]


def has_many_answers(subject: str) -> bool:
    """Whether there may be more than one message in answer to a question. The last of one subject is one."""
    is_read = subject.startswith(f"{ASK}.DIRECT.GET.") and not subject.endswith(".>")
    return is_read or subject.startswith(f"{ASK}.CONSUMER.MSG.NEXT.") or subject == DISCOVERY
