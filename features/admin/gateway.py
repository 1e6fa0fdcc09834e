"""Routes for operators: keys and limits of all tenants, and the audit log. They need the scope `admin`."""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from tailrace.features.admin.administration import Administration, without_hash
from tailrace.features.admin.audit_log import Actor, AuditEntry
from tailrace.features.admin.records import ListKeyUse
from tailrace.features.common.budgets import ListReachedBudgets, ReachedBudget
from tailrace.gateway.auth.admission import Admissions
from tailrace.gateway.auth.api_key import ApiKey
from tailrace.gateway.auth.api_request import ApiRequest, parse_tenant
from tailrace.gateway.auth.limits import BudgetUse, GivenLimits, Limits
from tailrace.gateway.feature import Feature, Parts
from tailrace.gateway.history_client import HistoryClient
from tailrace.gateway.http.json_response import json_response
from tailrace.gateway.http.parameters import ORDER, PAGE
from tailrace.gateway.http.query_parameters import is_true
from tailrace.gateway.http.route import ADMIN, Route, query
from tailrace.gateway.http.scope import TENANT_SCOPES, ScopeName
from tailrace.gateway.resources.paging import Page, is_newest_first, page_of
from tailrace.gateway.services import Gateway
from tailrace.proto.errors import LogUnavailable, Refused, cursor_invalid
from tailrace.proto.ids import CURSOR, Seq, Tenant
from tailrace.proto.ownership import Scope, Users
from tailrace.proto.runtime.settings import NoSettings

R = TypeVar("R")

LIFE_S_MAX = 10 * 366 * 86400
GRACE_S_MAX = 30 * 86400
# A list that only adds to its records what persistence knows does not wait longer for it.
USE_S = 1.0

Life = Annotated[int, Meta(ge=1, le=LIFE_S_MAX)]
Grace = Annotated[int, Meta(ge=0, le=GRACE_S_MAX)]
Name = Annotated[str, Meta(max_length=100)]


class NewKeyBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /v1/admin/keys`."""

    tenant: str
    """The tenant of the key's turns."""
    name: Name = ""
    """The purpose of the key."""
    scopes: Annotated[list[ScopeName], Meta(min_length=1)] | None = None
    """The rights of the key; `read`, `write` and `manage` if they are left out."""
    limits: GivenLimits | None = None
    """The limits of the key, by the names in docs/LIMITS.md."""
    expires_in_s: Life | None = None
    """The lifetime in seconds; null: the key is valid until it is revoked."""


class RotateBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /v1/admin/keys/{key_id}/rotate`."""

    grace_s: Grace = 0
    """How many seconds the old key stays valid."""


class LimitsBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `PUT /v1/admin/tenants/{tenant}/limits`."""

    limits: GivenLimits
    """All of the tenant's own limits, by the names in docs/LIMITS.md. For each other limit, the setting applies."""
    expected: GivenLimits | None = None
    """The tenant's own limits as they were read: if they have changed, the request is refused. Null: not checked."""


class TenantSettingsBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `PUT /v1/admin/tenants/{tenant}`."""

    users: Users
    """`private`: a user uses only what it owns. `shared`: the users of the tenant use everything of the tenant."""
    expected: Users | None = None
    """The setting as it was read: if it has changed, the request is refused. Null: not checked."""


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A key, without its secret. Times are Unix seconds."""

    id: str
    """The id of the key, which is not secret."""
    tenant: Tenant
    """The tenant of the key's turns."""
    name: str = ""
    """The purpose of the key."""
    scopes: list[str]
    """The rights of the key."""
    created_at: int
    """When the key was created."""
    expires_at: int | None = None
    """When the key expires; null: it does not."""
    revoked_at: int | None = None
    """When the key was revoked; null: it was not."""
    limits: GivenLimits | None = None
    """The limits of the key; null: those of the settings."""
    replaces: str | None = None
    """The id of the key for which a rotation has made this key; null: no rotation."""
    replaced_by: str | None = None
    """The id of the key that a rotation has made for this key; null: no rotation."""


class ListedKey(KeyRecord, frozen=True, kw_only=True):
    """A key in a list, with its use."""

    last_used: datetime | None = None
    """When the last of its turns started; null: it has made no turn, or persistence is unavailable."""
    month_usd: float | None = None
    """The cost of its turns of this calendar month (UTC); null: persistence is unavailable."""
    budgets: list[BudgetUse] | None = None
    """The use of its budgets, if `id` asks for the key; otherwise, and while persistence is unavailable, null. Keys of
    a chain of rotations share their budgets."""


class CreatedKey(KeyRecord, frozen=True, kw_only=True):
    """A new key. No other response contains its secret."""

    key: str
    """The key itself."""


class KeyList(Page[ListedKey], frozen=True, kw_only=True):
    """Keys, including revoked ones, in the order of their creation."""


class TenantBody(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant, its setting and its limits."""

    tenant: Tenant
    """The name of the tenant."""
    users: Users
    """Whether the tenant's users are private: each uses only what it owns."""
    limits: GivenLimits
    """The tenant's own limits."""
    effective: Limits
    """The limits that apply: the tenant's own limits, and the settings for all others."""
    budgets: list[BudgetUse] | None = None
    """The use of the budgets that apply; null: not read, in lists and while persistence is unavailable."""


class ListedTenant(TenantBody, frozen=True, kw_only=True):
    """A tenant in a list."""

    reached: list[ReachedBudget] | None
    """The budgets of the tenant and of its valid keys that have reached a share in their current period, each with the
    greatest one; null: persistence is unavailable."""


class TenantList(Page[ListedTenant], frozen=True, kw_only=True):
    """The tenants that have a key, private users, or limits of their own, by name."""


class AuditList(Page[AuditEntry], frozen=True, kw_only=True):
    """Changes by operators, newest first."""


async def list_keys(
    request: ApiRequest, admissions: Admissions, administration: Administration, history: HistoryClient
) -> Response:
    """`GET /v1/admin/keys`: the keys of all tenants, oldest first, including revoked ones, with their last use.

    Secrets are not stored, so none is shown. `tenant` selects a tenant, and `id` a key, with the use of its budgets.
    """
    key_id = request.query_params.get("id")
    keys = await administration.list_keys()
    if is_newest_first(request, "asc"):
        keys.reverse()
    page, following = page_in_memory(request, keys, lambda key: key.id, _selection(request))
    listed = await _with_use([_listed(key) for key in page], request.access, history)
    if key_id is not None:
        with suppress(Refused, LogUnavailable):
            budgets = [await admissions.limiter.budget_uses_of_key(key) for key in page]
            listed = [msgspec.structs.replace(one, budgets=uses) for one, uses in zip(listed, budgets, strict=True)]
    return json_response(KeyList(data=listed, next=following))


async def create_key(request: ApiRequest, administration: Administration) -> Response:
    """`POST /v1/admin/keys`: creates a key. Answers 201; no other response contains the secret.

    A key with the scope `admin` can do everything on this installation, so give it a lifetime.
    """
    actor = _actor(request)
    new, _ = await request.read(NewKeyBody)
    if not new.name.isprintable():
        raise Refused("request_invalid", "`name` has a control character: leave it out", param="name")
    made, _ = await administration.create_key(
        actor, parse_tenant(new.tenant), new.name, new.scopes or TENANT_SCOPES, new.limits, new.expires_in_s
    )
    return _render_created(made.record, made.secret)


async def revoke_key(request: ApiRequest, administration: Administration) -> Response:
    """`DELETE /v1/admin/keys/{key_id}`: revokes a key, for good. Its open streams end within a second.

    The last key with the scope `admin` is not revoked (`409`): use `tailrace keys revoke` for it.
    """
    actor = _actor(request)
    revoked = await administration.revoke_key(actor, request.path_params["key_id"], may_be_last=False)
    if revoked is None:
        raise _unknown_key()
    return json_response(_key(revoked.record))


async def rotate_key(request: ApiRequest, administration: Administration) -> Response:
    """`POST /v1/admin/keys/{key_id}/rotate`: replaces a key by a new one with the same rights.

    Answers 201 with the secret. The old key ends at once, or after `grace_s` seconds, in which clients can change.
    """
    actor = _actor(request)
    body, _ = await request.read(RotateBody)
    made = await administration.rotate_key(actor, request.path_params["key_id"], body.grace_s)
    if made is None:
        raise _unknown_key()
    return _render_created(made.record, made.secret)


async def list_tenants(
    request: ApiRequest, admissions: Admissions, administration: Administration, history: HistoryClient
) -> Response:
    """`GET /v1/admin/tenants`: the tenants that have a key, private users, or limits of their own, by name.

    A tenant that only a JWT names is not listed, but can be read and limited by its name. With `reached=true`, only
    the tenants of which a budget, or a budget of a key, has reached a share of `TAILRACE_SOFT_LIMITS`.
    """
    keys, limits, private = await administration.read_all()
    part, is_reached = request.query_params.get("q", "").lower(), is_true(request, "reached")
    reached: dict[Tenant, list[ReachedBudget]] | None = None
    try:
        async with asyncio.timeout(None if is_reached else USE_S):
            found = (await history.query(request.access, ListReachedBudgets())).budgets
        reached = _reached_by_tenant(found, keys, limits, admissions)
    except (Refused, TimeoutError):
        if is_reached:
            raise
    names = sorted({key.tenant for key in keys} | set(limits) | private | set(reached or ()))
    page, following = page_in_memory(
        request, names, str, lambda name: part in name and (not is_reached or name in (reached or ()))
    )
    data = [
        ListedTenant(
            **msgspec.structs.asdict(_tenant_body(name, limits.get(name, {}), private, admissions)),
            reached=None if reached is None else reached.get(name, []),
        )
        for name in page
    ]
    return json_response(TenantList(data=data, next=following))


async def get_limits(request: ApiRequest, admissions: Admissions, administration: Administration) -> Response:
    """`GET /v1/admin/tenants/{tenant}/limits`: the tenant's own limits, and those that apply.

    docs/LIMITS.md explains them. `usd_day` and `usd_month` are its budgets.
    """
    tenant = parse_tenant(request.path_params["tenant"])
    _, limits, private = await administration.read_all()
    body = _tenant_body(tenant, limits.get(tenant, {}), private, admissions)
    return json_response(await _with_budgets(body, admissions))


async def put_tenant(request: ApiRequest, admissions: Admissions, administration: Administration) -> Response:
    """`PUT /v1/admin/tenants/{tenant}`: sets whether the tenant's users are private, at all gateways within a second.

    Refused with `409` while a gateway runs that does not know the setting. Streams of the tenant's users are closed
    when it becomes private: each goes on at its cursor if it is the user's own.
    """
    actor = _actor(request)
    tenant = parse_tenant(request.path_params["tenant"])
    body, _ = await request.read(TenantSettingsBody)
    await administration.set_tenant_users(actor, tenant, body.users, body.expected)
    own = (await administration.tenant_limits()).get(tenant, {})
    private = {tenant} if body.users == "private" else set[Tenant]()
    return json_response(await _with_budgets(_tenant_body(tenant, own, private, admissions), admissions))


async def put_limits(request: ApiRequest, admissions: Admissions, administration: Administration) -> Response:
    """`PUT /v1/admin/tenants/{tenant}/limits`: replaces the tenant's own limits, at all gateways within a second.

    With `{"limits": {}}`, the limits of the settings apply. Turns that run are not stopped.
    """
    actor = _actor(request)
    tenant = parse_tenant(request.path_params["tenant"])
    body, _ = await request.read(LimitsBody)
    await administration.set_tenant_limits(actor, tenant, body.limits, body.expected)
    private = await administration.private_tenants()
    return json_response(await _with_budgets(_tenant_body(tenant, body.limits, private, admissions), admissions))


async def get_audit(request: ApiRequest, administration: Administration) -> Response:
    """`GET /v1/admin/audit`: the changes that operators have made, newest first, in pages.

    Changes from the command line are included. No process of Tailrace can change or delete an entry.
    """
    after, limit = page_of(request)
    if after is not None and CURSOR.fullmatch(after) is None:
        raise cursor_invalid()
    found, older = await administration.audit.page(None if after is None else Seq(int(after)), limit)
    return json_response(AuditList(data=found, next=None if older is None else str(older)))


def _actor(request: ApiRequest) -> Actor:
    return Actor(request.principal.key or "", request.client.host if request.client is not None else "")


def _unknown_key() -> Refused:
    return Refused("key_not_found", "no valid key has this id: see GET /v1/admin/keys")


def _tenant_body(tenant: Tenant, own: GivenLimits, private: Collection[Tenant], admissions: Admissions) -> TenantBody:
    users: Users = "private" if tenant in private else "shared"
    return TenantBody(tenant=tenant, users=users, limits=own, effective=admissions.limiter.effective_limits(own))


async def _with_budgets(body: TenantBody, admissions: Admissions) -> TenantBody:
    # A change was made already, and needs no persistence.
    with suppress(Refused, LogUnavailable):
        budgets = await admissions.limiter.budget_uses(body.tenant, body.limits)
        return msgspec.structs.replace(body, budgets=budgets)
    return body


def _key(record: ApiKey) -> KeyRecord:
    return msgspec.convert(without_hash(record), KeyRecord)


def _listed(record: ApiKey) -> ListedKey:
    return msgspec.convert(without_hash(record), ListedKey)


def _selection(request: ApiRequest) -> Callable[[ApiKey], bool]:
    """Returns whether the query selects a key. Raises Refused."""
    tenant, key_id, part, state = (request.query_params.get(name) for name in ("tenant", "id", "q", "state"))
    if state not in (None, *STATES):
        raise Refused("request_invalid", f"`state` must be one of {', '.join(STATES)}", param="state")
    now, wanted = time.time(), (part or "").lower()

    def is_selected(key: ApiKey) -> bool:
        return (
            tenant in (None, key.tenant)
            and key_id in (None, key.id)
            and state in (None, "valid" if key.is_good(now) else "ended")
            and (not wanted or any(wanted in text.lower() for text in (key.id, key.tenant, key.name)))
        )

    return is_selected


async def _with_use(keys: list[ListedKey], scope: Scope, history: HistoryClient) -> list[ListedKey]:
    """Returns the keys with their last use and cost; unchanged while persistence is unavailable."""
    first = datetime.now(UTC).date().replace(day=1)
    try:
        async with asyncio.timeout(USE_S):
            found = await history.query(scope, ListKeyUse([(key.tenant, key.id) for key in keys], first))
    except (Refused, TimeoutError):
        return keys
    uses = [found.uses.get(key.id) for key in keys]
    return [
        msgspec.structs.replace(key, last_used=use and use.last_used, month_usd=use.cost_usd if use else 0.0)
        for key, use in zip(keys, uses, strict=True)
    ]


def _reached_by_tenant(
    reached: Iterable[ReachedBudget],
    keys: Iterable[ApiKey],
    limits: Mapping[Tenant, GivenLimits],
    admissions: Admissions,
) -> dict[Tenant, list[ReachedBudget]]:
    """Returns the reached budgets that still apply, by tenant: neither of an ended key, nor of changed limits."""
    now, found = time.time(), dict[Tenant, list[ReachedBudget]]()
    # Keys share their budgets with those that replace them.
    chains = {key.id: key.counted_as or key.id for key in keys}
    valid = {chains[key.id] for key in keys if key.is_good(now)}
    own_limits = {key.id: key.limits for key in keys}
    for one in reached:
        of_key = one.of == "key"
        own = own_limits.get(one.key or "") if of_key else limits.get(one.tenant)
        budgets = admissions.limiter.effective_limits(own or {}, of_key=of_key)
        # A JWT has no record: its budgets are in the settings.
        has_ended = one.key in chains and chains[one.key] not in valid
        if getattr(budgets, one.budget) == one.limit_usd and not has_ended:
            found.setdefault(one.tenant, []).append(one)
    return found


def _render_created(record: ApiKey, secret: str) -> Response:
    created = CreatedKey(**msgspec.structs.asdict(_key(record)), key=secret)
    return json_response(created, status=201, headers={"location": f"/v1/admin/keys/{record.id}"})


STATES = ("valid", "ended")
OF_TENANT = query("tenant", "Only keys of this tenant.")
OF_KEY = query("id", "Only the key of this id, with the use of its budgets.")
OF_STATE = query("state", "Only keys that are valid, or that were revoked or have expired.", enum=[*STATES])
WITH_TEXT = query("q", "Only keys with this text in their id, tenant or name.")
IN_NAME = query("q", "Only tenants with this text in their name.")
REACHED = query("reached", "Only tenants with a budget that has reached a share.", type="boolean")


def page_in_memory(
    request: Request, items: Sequence[R], cursor_of: Callable[[R], str], is_selected: Callable[[R], bool]
) -> tuple[list[R], str | None]:
    """Returns the page of selected `items` that `?after=` and `?limit=` name, and its `next`. Raises Refused.

    `cursor_of(item)` is the `after` of the page that begins after the item, also when it is not selected any more.
    """
    after, limit = page_of(request)
    begin = 0
    if after is not None:
        cursors = list(map(cursor_of, items))
        if after not in cursors:
            raise cursor_invalid()
        begin = cursors.index(after) + 1
    page = list(islice(filter(is_selected, islice(items, begin, None)), limit + 1))
    return page[:limit], cursor_of(page[limit - 1]) if len(page) > limit else None


ROUTES = [
    Route(
        "GET",
        "/v1/admin/keys",
        list_keys,
        "admin",
        ADMIN,
        result=KeyList,
        parameters=(OF_TENANT, OF_KEY, OF_STATE, WITH_TEXT, ORDER, *PAGE),
    ),
    Route("POST", "/v1/admin/keys", create_key, "admin", ADMIN, body=NewKeyBody, result=CreatedKey, status=201),
    Route("DELETE", "/v1/admin/keys/{key_id}", revoke_key, "admin", ADMIN, result=KeyRecord),
    Route(
        "POST",
        "/v1/admin/keys/{key_id}/rotate",
        rotate_key,
        "admin",
        ADMIN,
        body=RotateBody,
        result=CreatedKey,
        status=201,
    ),
    Route(
        "GET",
        "/v1/admin/tenants",
        list_tenants,
        "admin",
        ADMIN,
        result=TenantList,
        parameters=(IN_NAME, REACHED, *PAGE),
    ),
    Route("PUT", "/v1/admin/tenants/{tenant}", put_tenant, "admin", ADMIN, body=TenantSettingsBody, result=TenantBody),
    Route("GET", "/v1/admin/tenants/{tenant}/limits", get_limits, "admin", ADMIN, result=TenantBody),
    Route("PUT", "/v1/admin/tenants/{tenant}/limits", put_limits, "admin", ADMIN, body=LimitsBody, result=TenantBody),
    Route("GET", "/v1/admin/audit", get_audit, "admin", ADMIN, result=AuditList, parameters=PAGE),
]


def start(gateway: Gateway, _settings: NoSettings) -> Parts:
    """Makes the service that changes keys and limits, and stores each change in the audit log."""
    return Parts(services=(Administration(gateway.connection),))


FEATURE = Feature(NoSettings, start, routes=ROUTES)
