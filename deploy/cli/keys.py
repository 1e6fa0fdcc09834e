"""`tailrace keys`: creates, lists, rotates and revokes API keys in NATS. Only their hashes are stored."""

import argparse
import asyncio
import re
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import msgspec

from tailrace.deploy.cli.arguments import add_data, add_json, tenant
from tailrace.deploy.cli.main import add_config
from tailrace.deploy.cli.result import print_json
from tailrace.deploy.local import nats_server
from tailrace.deploy.local.terminal_text import table
from tailrace.features.admin.administration import Administration, without_hash
from tailrace.features.admin.audit_log import Actor
from tailrace.features.admin.new_key import NewKey
from tailrace.features.limits.quotas import What, owner_of_key, quota_of
from tailrace.features.limits.rates import parse_limits_setting
from tailrace.features.limits.rests import rest_of
from tailrace.gateway.auth.api_key import ApiKey
from tailrace.gateway.auth.limits import NAMES
from tailrace.gateway.http.scope import SCOPES, TENANT_SCOPES, ScopeName
from tailrace.proto.errors import SettingsInvalid
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import Connection, Counters, check
from tailrace.proto.nats.users import ADMIN
from tailrace.proto.runtime.exit_status import EXIT_ERROR

DESCRIPTION = "Create, list, rotate and revoke API keys. Changes take effect within a second."
EXAMPLES = """\
examples:
  tailrace keys create --tenant acme --name 'web shop'     a key with all scopes
  tailrace keys create --tenant acme --scope read          a key that can only read
  tailrace keys create --tenant acme --expires 90d         a key that expires after 90 days
  tailrace keys create --tenant acme --json | jq -r .key
  tailrace keys list
  tailrace keys rotate key_0123456789abcdef --grace 1h     a new key like it; the old one ends after an hour
  tailrace keys revoke key_0123456789abcdef                takes effect within a second, also for open streams

Keys are stored in the NATS of the `tailrace up` with this data directory (--data), or in TAILRACE_NATS_URL.
"""
NAME_CHARS_MAX = 100
LIFE = re.compile(r"([1-9][0-9]{0,3})([dhm])")
LIFE_MAX = 9999
HEADINGS = ("ID", "TENANT", "SCOPES", "CREATED", "EXPIRES", "REVOKED", "LIMITS", "LEFT", "NAME")
# The limits whose rest the list shows. Limits of a minute are whole again before the list is read.
BUDGETS: tuple[What, ...] = ("usd_day", "usd_month", "bytes_day")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    create = actions.add_parser("create", help="create a key and show it once", allow_abbrev=False)
    create.set_defaults(action=run_create)
    create.add_argument("--tenant", type=tenant, required=True, metavar="NAME", help="tenant of the key's turns")
    create.add_argument("--name", type=key_name, default="", metavar="TEXT", help="description, shown in the list")
    create.add_argument(
        "--scope",
        action="append",
        choices=sorted(SCOPES),
        help="permission; repeat it for several (default: read, write, manage; operate and admin are for all tenants)",
    )
    create.add_argument(
        "--limits",
        type=limits,
        metavar="NAME=NUMBER,…",
        help=f"limits of the key: {', '.join(NAMES)} (docs/LIMITS.md)",
    )
    create.add_argument(
        "--expires", type=life, metavar="TIME", help="lifetime: 90d, 12h or 30m (default: until it is revoked)"
    )
    listing = actions.add_parser("list", help="list all keys, including revoked ones", allow_abbrev=False)
    listing.set_defaults(action=run_list)
    revoking = actions.add_parser("revoke", help="revoke a key permanently", allow_abbrev=False)
    revoking.set_defaults(action=run_revoke)
    rotating = actions.add_parser("rotate", help="replace a key by a new one like it", allow_abbrev=False)
    rotating.set_defaults(action=run_rotate)
    rotating.add_argument(
        "--grace", type=life, default=0, metavar="TIME", help="how long the old key stays valid (default: it ends)"
    )
    for action in (revoking, rotating):
        action.add_argument("id", metavar="ID", help="id in the list: key_…")
    for action in (create, listing, revoking, rotating):
        add_config(action)
        add_data(action)
        add_json(action)


def life(text: str) -> int:
    """Returns a lifetime in seconds."""
    found = LIFE.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a time such as 90d, 12h or 30m, with a number from 1 to {LIFE_MAX}"
        )
    return int(found[1]) * {"d": 86400, "h": 3600, "m": 60}[found[2]]


def limits(text: str) -> dict[str, float]:
    """argparse type: limits as `name=number`, separated by commas."""
    try:
        values: dict[str, float] = msgspec.to_builtins(parse_limits_setting("--limits", text))
    except SettingsInvalid as error:
        # argparse names the option itself.
        raise argparse.ArgumentTypeError(str(error).removeprefix("--limits: ")) from error
    return values


def key_name(text: str) -> str:
    """argparse type: the description of a key, printable, at most NAME_CHARS_MAX characters."""
    # Names are printed on terminals: no control characters.
    if not text.isprintable() or len(text) > NAME_CHARS_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is not a name: at most {NAME_CHARS_MAX} printable characters")
    return text


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Runs the subcommand. Raises SettingsInvalid if several systems run and a change names no system; LogError."""
    url = nats_server.find_url(args.data, environ, is_change=args.action != run_list)
    status: int = asyncio.run(args.action(url, args))
    return status


async def run_create(url: str, args: argparse.Namespace) -> int:
    """Prints a new key to standard output, and its explanation to standard error. Raises LogError."""
    scopes = args.scope or TENANT_SCOPES
    made, is_first = await create(url, args.tenant, args.name, scopes, args.limits, args.expires)
    print(f"{made.record.id} of {made.record.tenant} was created; the key is shown only once:", file=sys.stderr)
    show(made, args)
    if made.record.expires_at is not None:
        print(f"It expires at {day(made.record.expires_at)} UTC.", file=sys.stderr)
    if is_first:
        print("It is the first key: from now on every request needs a credential.", file=sys.stderr)
    return 0


async def run_list(url: str, args: argparse.Namespace) -> int:
    """Prints all keys of all tenants without their hashes. Raises LogError."""
    async with open_connection(url) as connection:
        keys = await Administration(connection).list_keys()
        left = {key.id: await read_left(Counters(connection), key) for key in keys}
    if args.json:
        print_json([without_hash(key) | {"left": left[key.id]} for key in keys])
    else:
        print(render(keys, left))
    return 0


async def run_rotate(url: str, args: argparse.Namespace) -> int:
    """Prints a key that replaces `args.id`. The old key is valid for another `args.grace` seconds.

    Returns EXIT_ERROR for an unknown key. Raises LogError.
    """
    async with open_administration(url) as administration:
        made = await administration.rotate_key(actor(), args.id, args.grace)
    if made is None:
        return report_unknown_key(args.id)
    ends = "is revoked" if not args.grace else f"is valid until {day(int(time.time()) + args.grace)} UTC"
    print(f"{made.record.id} replaces {args.id}, which {ends}; the key is shown only once:", file=sys.stderr)
    show(made, args)
    return 0


def show(made: NewKey, args: argparse.Namespace) -> None:
    """Prints a new key; with `--json`, its record with the field `key`."""
    if args.json:
        print_json(without_hash(made.record) | {"key": made.secret})
    else:
        print(made.secret)


def report_unknown_key(key_id: str) -> int:
    """Prints that no valid key has this id; returns EXIT_ERROR."""
    print(f"tailrace: no key has the id {key_id!r}, or it has ended: see `tailrace keys list`", file=sys.stderr)
    return EXIT_ERROR


async def run_revoke(url: str, args: argparse.Namespace) -> int:
    """Revokes a key; revoking it twice is not an error. Returns EXIT_ERROR for an unknown key. Raises LogError."""
    async with open_administration(url) as administration:
        revoked = await administration.revoke_key(actor(), args.id, may_be_last=True)
    if revoked is None:
        return report_unknown_key(args.id)
    key, was_before, is_last = revoked
    how = f"was revoked already, {day(key.revoked_at)}" if was_before else "is revoked"
    if args.json:
        print_json(without_hash(key))
    else:
        print(f"{key.id} of {key.tenant} {how}")
    if is_last:
        print("No valid key is left, and every request needs one: run `tailrace keys create`.", file=sys.stderr)
    return 0


async def create(
    url: str,
    tenant: Tenant,
    name: str,
    scopes: Iterable[ScopeName],
    limits: dict[str, float] | None = None,
    life_s: int | None = None,
) -> tuple[NewKey, bool]:
    """Creates a key; returns it, and whether it is the first key. From the first key on, all requests need a key.

    Without `life_s` the key does not expire. Raises LogMisconfigured if the bucket is missing, LogUnavailable.
    """
    async with open_administration(url) as administration:
        return await administration.create_key(actor(), tenant, name, scopes, limits, life_s)


def actor() -> Actor:
    """Returns the author in the audit log for changes by this command."""
    return Actor("command line", socket.gethostname())


async def read_left(counters: Counters, key: ApiKey) -> dict[str, float]:
    """Returns the rest of the key's own budgets, by the names of the limits. Raises LogUnavailable."""
    owner, now = owner_of_key(key), time.time()
    quotas = [quota for what in BUDGETS if (quota := quota_of(owner, what, now)) is not None]
    return {quota.what: rest_of(quota, await counters.read(quota.subject)).left for quota in quotas}


def render(keys: Sequence[ApiKey], left: Mapping[str, Mapping[str, float]]) -> str:
    """Returns a table. `left` has the rest of the budgets of each key by its id."""
    rows = [
        (
            *(key.id, key.tenant, ",".join(key.scopes)),
            *(day(key.created_at), day(key.expires_at), day(key.revoked_at)),
            *(format_limits(key.limits or {}), format_limits(left[key.id]), key.name),
        )
        for key in keys
    ]
    return table([HEADINGS, *rows])


def format_limits(values: Mapping[str, float]) -> str:
    """Formats limits for `--limits`; `-` for none."""
    return ",".join(f"{name}={round(value, 4):.12g}" for name, value in values.items()) or "-"


def day(time_s: int | None) -> str:
    """Returns the time in UTC, to the minute; `-` for None."""
    return "-" if time_s is None else datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M")


@asynccontextmanager
async def open_administration(url: str) -> AsyncIterator[Administration]:
    """Yields the Administration with the rights of an operator. Raises LogUnavailable and LogMisconfigured."""
    async with open_connection(url) as connection:
        yield Administration(connection)


@asynccontextmanager
async def open_connection(url: str) -> AsyncIterator[Connection]:
    """Yields a connection with the rights of an operator. Raises LogUnavailable and LogMisconfigured."""
    connection = await Connection.open(url, "tailrace-keys", ADMIN)
    try:
        await check(connection)
        yield connection
    finally:
        await connection.close()
