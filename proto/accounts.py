"""What each process may say and hear in NATS, and no more: a user for each role. Pure; `deploy` tells the server.

A new subject has its row here or is refused, which the first test notices: its processes have these rights. They stop
mistakes, and make noise. Who has taken a process over gets by them: nats-server sends an answer to whatever subject its
question names, and asks for nobody's right to it (SECURITY.md, "What is not").
"""

from collections.abc import Mapping

import msgspec

from proto.ids import is_token
from proto.model_records import CANCEL_MESSAGE_BATCH, COUNT_TOKENS, MODELS
from proto.subjects import (
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

ASK = "$JS.API"
# How everything is set up: each process looks at that before it begins.
LOOK = (f"{ASK}.STREAM.INFO.*", f"{ASK}.CONSUMER.INFO.{STREAM}.*")
READ_TURNS = (f"{ASK}.DIRECT.GET.{STREAM}", f"{ASK}.STREAM.MSG.GET.{STREAM}")
READ_BLOBS = (f"{ASK}.DIRECT.GET.{BODIES}.>", f"{ASK}.STREAM.MSG.GET.{BODIES}")
READ_CLAIMS = f"{ASK}.STREAM.MSG.GET.{CLAIMS_STREAM}"
PURGE_TURNS = f"{ASK}.STREAM.PURGE.{STREAM}"
COUNT = (EVERY_LIMIT, EVERY_BUDGET, f"{ASK}.STREAM.MSG.DELETE.{SLOTS}")
# Of all questions, those that generators answer; the others are persistence's.
OF_GENERATORS = tuple(map(every_query, (MODELS, COUNT_TOKENS, CANCEL_MESSAGE_BATCH)))
# How `nats micro ls` finds who answers questions.
DISCOVERY = "$SRV.>"


class Rights(msgspec.Struct, frozen=True):
    """Subjects with their wildcards; `not_subscribe` goes before `subscribe`."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    not_subscribe: tuple[str, ...] = ()
    is_asked: bool = False
    """It may also answer, once, what it was asked."""


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
            "queries.*.*",
            health(GENERATORS),
            health(PERSISTENCE),
            EVERY_PRESENCE,
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
        is_asked=True,
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
            health(GENERATORS),
            *OF_GENERATORS,
            DISCOVERY,
        ),
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
        subscribe=(f"{inbox(PERSISTENCE)}.>", health(PERSISTENCE), "queries.*.*", DISCOVERY),
        not_subscribe=OF_GENERATORS,
        is_asked=True,
    ),
    ADMIN: Rights(
        publish=(f"{ASK}.>", f"$KV.{KEYS}.*", "queries.*.*", DISCOVERY),
        subscribe=(f"{inbox(ADMIN)}.>",),
    ),
}
