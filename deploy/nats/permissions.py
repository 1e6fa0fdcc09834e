"""NATS accounts and permissions: which subjects each role may publish and subscribe to. Pure data.

The log has its own account, and so has each role. A role's account imports the subjects that it needs from other
accounts, and nothing else crosses accounts. nats-server sends a reply to any subject that a request names, without a
permission check; in a separate account such a reply reaches no other role (ADR 23). The user's permissions repeat the
rules, so that a mistake causes a reported error, not a lost message.

The server's configuration is written from this module. A new subject needs a row here.
"""

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from tailrace.features.admin.records import ListKeyUse
from tailrace.features.batches.records import CANCEL_MESSAGE_BATCH, GetBatch, ListBatches, ListBatchTurns
from tailrace.features.client_calls.records import DecideCall, GetContinuation, ListCalls, ListDecided, ListParked
from tailrace.features.common.budgets import ListReachedBudgets
from tailrace.features.count_tokens.records import COUNT_TOKENS
from tailrace.features.files.records import CreateFile, DeleteFile, GetFile, ListFiles
from tailrace.features.limits.records import CheckBudget
from tailrace.features.projects.records import CreateProject, GetProject, ListProjects
from tailrace.features.usage.records import (
    GetBilledUsage,
    GetStats,
    GetUsage,
    GetUsageBy,
    GetUsageOfAll,
    ListTenantUsage,
)
from tailrace.proto.model_records import CANCEL_TURN, END_DAMAGED_TURN, MODELS
from tailrace.proto.nats.peers import SERVERS
from tailrace.proto.nats.users import ADMIN, GATEWAY, inbox_prefix
from tailrace.proto.records import (
    GetAncestry,
    GetContext,
    GetLastTurn,
    GetSession,
    GetTurn,
    ListRunning,
    ListSessions,
    ListSessionTurns,
    ListTurns,
    ListTurnsSince,
)
from tailrace.proto.resources import ChangeSession, CreateSession, DeleteResource, ListBranches
from tailrace.proto.subjects import (
    AUDIT,
    BODIES,
    BUDGETS,
    CLAIMS,
    CLAIMS_STREAM,
    EVERY_AUDIT,
    EVERY_BLOB,
    EVERY_BUDGET,
    EVERY_DAMAGE_NOTE,
    EVERY_END,
    EVERY_EVENT_BLOB,
    EVERY_EXTENSION_MARK,
    EVERY_LIMIT,
    EVERY_LIVE,
    EVERY_LIVE_KEY,
    EVERY_PEER,
    EVERY_PRESENCE,
    EVERY_READER_QUERY,
    EVERY_READER_REPLY,
    EVERY_REQUEST,
    EVERY_SLOT,
    EVERY_STEP_RECORD,
    GENERATORS,
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

# The account of the log, and of all users without a role.
LOG = "TAILRACE"

API = "$JS.API"
# Every process checks the configuration at startup. The import of INFO marks an account whose JetStream is in another
# account: without it nats-server answers all of $JS.API with "not enabled" (Account.serviceImportShadowed).
READ_CONFIG = (f"{API}.INFO", f"{API}.STREAM.INFO.*", f"{API}.CONSUMER.INFO.{STREAM}.*")
READ_TURNS = (f"{API}.DIRECT.GET.{STREAM}", f"{API}.STREAM.MSG.GET.{STREAM}")
READ_BLOBS = (f"{API}.DIRECT.GET.{BODIES}.>", f"{API}.STREAM.MSG.GET.{BODIES}")
READ_CLAIMS = f"{API}.STREAM.MSG.GET.{CLAIMS_STREAM}"
PURGE_TURNS = f"{API}.STREAM.PURGE.{STREAM}"
COUNT = (EVERY_LIMIT, EVERY_BUDGET, f"{API}.STREAM.MSG.DELETE.{SLOTS}")
GENERATOR_QUERIES = tuple(map(every_query, (MODELS, COUNT_TOKENS, CANCEL_MESSAGE_BATCH, CANCEL_TURN)))
END_DAMAGED = every_query(END_DAMAGED_TURN)
PERSISTENCE_QUERIES = tuple(
    every_query(question.query)
    for question in (
        *(
            GetTurn,
            GetSession,
            ListSessions,
            ListSessionTurns,
            ListTurnsSince,
            ListTurns,
            ListRunning,
            GetAncestry,
            GetContext,
            GetLastTurn,
        ),
        *(
            GetProject,
            ListProjects,
            ListBranches,
            GetBilledUsage,
            GetUsage,
            GetUsageBy,
            ListTenantUsage,
            GetUsageOfAll,
            GetStats,
            CreateSession,
            ChangeSession,
            CreateProject,
            DeleteResource,
            CreateFile,
            GetFile,
            ListFiles,
            DeleteFile,
        ),
        CheckBudget,
        ListReachedBudgets,
        ListKeyUse,
        *(GetBatch, ListBatches, ListBatchTurns),
        *(DecideCall, GetContinuation, ListCalls, ListDecided, ListParked),
    )
)
# Used by `nats micro ls`.
DISCOVERY = "$SRV.>"


class Rights(msgspec.Struct, frozen=True):
    """The subjects of a role. Subjects in both lists stay within the role's processes."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    serves: tuple[str, ...] = ()
    """Subjects of requests that the role serves."""
    can_reply: bool = False
    """Whether the role may reply once to each request that it receives."""


class Import(NamedTuple):
    """An import of another account's subject: a service (requests), or a stream (messages)."""

    account: str
    """The account that exports the subject."""
    subject: str
    is_stream: bool = False


def consume_subjects(durable: str) -> tuple[str, ...]:
    """Returns the subjects for fetching from a consumer and for acknowledging."""
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
            # Idempotency keys, pins and used tickets. Tombstones are written by persistence.
            f"$KV.{CLAIMS}.*",
            f"$KV.{CLAIMS}.held.>",
            f"$KV.{CLAIMS}.ticket.*",
            EVERY_DAMAGE_NOTE,
            f"$KV.{SECRETS}.*",
            f"$KV.{LOGINS}.*",
            # Keys and limits of tenants, by operators; each change is first in the audit log.
            f"$KV.{KEYS}.>",
            EVERY_AUDIT,
            *GENERATOR_QUERIES,
            *PERSISTENCE_QUERIES,
            health(GENERATORS),
            health(PERSISTENCE),
            EVERY_PRESENCE,
            EVERY_READER_REPLY,
            # Only gateways send requests to gateways. `can_reply` would allow replies to any subject.
            f"{inbox_prefix(GATEWAY)}.>",
            *READ_CONFIG,
            *READ_TURNS,
            *READ_BLOBS,
            READ_CLAIMS,
            f"{API}.DIRECT.GET.{SLOTS}",
            f"{API}.DIRECT.GET.{KEYS_STREAM}",
            f"{API}.DIRECT.GET.{KEYS_STREAM}.>",
            f"{API}.DIRECT.GET.{AUDIT}",
            f"{API}.STREAM.MSG.GET.KV_{SECRETS}",
            f"{API}.STREAM.MSG.GET.KV_{LOGINS}",
            f"{API}.STREAM.PURGE.{CLAIMS_STREAM}",
            # For deleting a turn, and a write probe.
            PURGE_TURNS,
            f"{API}.STREAM.MSG.DELETE.{STREAM}",
        ),
        subscribe=(f"{inbox_prefix(GATEWAY)}.>", EVERY_LIVE, EVERY_LIVE_KEY, EVERY_PRESENCE, EVERY_READER_QUERY),
    ),
    GENERATORS: Rights(
        publish=(
            # The generator of a batch appends the requests of its inputs.
            EVERY_REQUEST,
            "turns.*.*.attempt",
            "turns.*.*.event",
            "turns.*.*.progress",
            EVERY_END,
            EVERY_EVENT_BLOB,
            EVERY_DAMAGE_NOTE,
            EVERY_STEP_RECORD,
            *COUNT,
            *READ_CONFIG,
            *READ_TURNS,
            *READ_BLOBS,
            READ_CLAIMS,
            *consume_subjects(GENERATORS),
            EVERY_PEER,
            SERVERS,
        ),
        subscribe=(f"{inbox_prefix(GENERATORS)}.>", EVERY_LIVE, EVERY_PEER),
        serves=(health(GENERATORS), *GENERATOR_QUERIES, END_DAMAGED, DISCOVERY),
        can_reply=True,
    ),
    PERSISTENCE: Rights(
        publish=(
            # A blob is marked as deleted before it is purged.
            "bodies.*.*",
            f"{API}.STREAM.PURGE.{BODIES}",
            f"$KV.{CLAIMS}.deleted.>",
            f"$KV.{CLAIMS}.unstored.>",
            EVERY_DAMAGE_NOTE,
            EVERY_EXTENSION_MARK,
            END_DAMAGED,
            # For the comparison of budgets with what is recorded.
            EVERY_BUDGET,
            f"{API}.DIRECT.GET.{BUDGETS}",
            f"{API}.STREAM.MSG.GET.{BUDGETS}",
            f"{API}.DIRECT.GET.{SLOTS}",
            f"{API}.STREAM.MSG.DELETE.{SLOTS}",
            # For erasing turns with `store: false`.
            f"{API}.STREAM.MSG.DELETE.{STREAM}",
            *READ_CONFIG,
            *READ_TURNS,
            *READ_BLOBS,
            READ_CLAIMS,
            PURGE_TURNS,
            *consume_subjects(PERSISTENCE),
            *consume_subjects(WEBHOOKS),
            # A starting process asks the others for their databases.
            health(PERSISTENCE),
            f"{API}.CONSUMER.RESET.{STREAM}.{PERSISTENCE}",
        ),
        subscribe=(f"{inbox_prefix(PERSISTENCE)}.>",),
        serves=(health(PERSISTENCE), *PERSISTENCE_QUERIES, DISCOVERY),
        can_reply=True,
    ),
    ADMIN: Rights(
        publish=(
            f"{API}.>",
            f"$KV.{KEYS}.>",
            EVERY_AUDIT,
            *GENERATOR_QUERIES,
            *PERSISTENCE_QUERIES,
            DISCOVERY,
            health(GENERATORS),
            health(PERSISTENCE),
            EVERY_READER_QUERY,
        ),
        subscribe=(f"{inbox_prefix(ADMIN)}.>", EVERY_READER_REPLY),
    ),
}


def account(user: str) -> str:
    """Returns the account of a user."""
    return f"{LOG}_{user.upper()}" if user in RIGHTS and user != ADMIN else LOG


ACCOUNTS = tuple(dict.fromkeys((LOG, *map(account, RIGHTS))))
# Message streams that the log's account exports.
FEEDS = (EVERY_LIVE, EVERY_LIVE_KEY, EVERY_READER_QUERY)


def imports_of(user: str) -> list[Import]:
    """Returns all imports of a user's account."""
    rights = RIGHTS[user]
    services = [
        Import(owner, subject)
        for subject in rights.publish
        # nats-server imports SERVERS into each account itself.
        if subject not in (*rights.subscribe, SERVERS)
        for owner in ([account(one) for one in RIGHTS if subject in RIGHTS[one].serves] or [LOG])
    ]
    streams = [Import(LOG, subject, is_stream=True) for subject in rights.subscribe if subject in FEEDS]
    return [one for one in (*services, *streams) if one.account != account(user)]


def has_many_replies(subject: str) -> bool:
    """Returns whether a request on `subject` may have more than one reply message."""
    is_read = subject.startswith(f"{API}.DIRECT.GET.") and not subject.endswith(".>")
    is_of_all = subject in (DISCOVERY, health(GENERATORS), health(PERSISTENCE))
    return is_read or is_of_all or subject.startswith(f"{API}.CONSUMER.MSG.NEXT.")
