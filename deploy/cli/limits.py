"""`tailrace limits`: shows and sets the limits of tenants, over `/v1/admin`."""

import argparse
from collections.abc import Mapping
from typing import Any

from tailrace.deploy.cli.arguments import add_connection, add_json, tenant
from tailrace.deploy.cli.connection import connect
from tailrace.deploy.cli.keys import limits
from tailrace.deploy.cli.result import print_json
from tailrace.deploy.local.terminal_text import table
from tailrace.proto.errors import SettingsInvalid

DESCRIPTION = "Show or change the limits of tenants. All gateways apply a change within a second."
EXAMPLES = """\
examples:
  tailrace limits                                          the limits of all tenants with a key or limits of their own
  tailrace limits acme                                     those of one tenant
  tailrace limits acme --set requests=600,usd_month=500    sets these two; the others stay
  tailrace limits acme --remove usd_month                  removes one; TAILRACE_LIMITS_TENANT applies
  tailrace limits acme --clear                             removes all of its own limits
  tailrace limits --json | jq '.[].effective'

The key needs the scope `admin`. docs/LIMITS.md has the names of the limits.
"""
# Costs are shown with four digits.
SHOWN_USD_MIN = 0.00005
HEADINGS = ("TENANT", "OWN", "EFFECTIVE")
PAGE = "200"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tenant", type=tenant, nargs="?", metavar="TENANT", help="the tenant (default: all)")
    change = parser.add_mutually_exclusive_group()
    change.add_argument("--set", type=limits, metavar="NAME=NUMBER,…", help="set these limits; the others stay")
    change.add_argument("--remove", metavar="NAME,…", help="remove these limits of the tenant; the others stay")
    change.add_argument("--clear", action="store_true", help="remove all of the tenant's own limits")
    add_json(parser)
    add_connection(parser)


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Shows the limits of one tenant or of all, after the change that the arguments name.

    A change fails with `409 limits_changed` if another operator changed the same tenant meanwhile.
    Raises SettingsInvalid, GatewayFailed.
    """
    is_change = args.set is not None or args.remove is not None or args.clear
    if is_change and args.tenant is None:
        raise SettingsInvalid("--set, --remove and --clear need a TENANT: add the name of the tenant to change")
    path, found = f"/v1/admin/tenants/{args.tenant}/limits", list[dict[str, Any]]()
    with connect(args, environ) as client:
        if is_change:
            # Without `expected`, the second of two operators would undo the first one's change.
            own = None if args.clear else client.request("GET", path)["limits"]
            found.append(client.request("PUT", path, {"limits": apply_change(own or {}, args), "expected": own}))
        elif args.tenant is not None:
            found.append(client.request("GET", path))
        else:
            found += client.items("/v1/admin/tenants", {"limit": PAGE})
    if args.json:
        print_json(found)
    else:
        print(table([HEADINGS, *((one["tenant"], show(one["limits"]), show(one["effective"])) for one in found)]))
        for one in found:
            for budget in one.get("budgets") or ():
                print(describe_budget(budget))
    return 0


def describe_budget(budget: Mapping[str, Any]) -> str:
    """Returns a line about a budget: what is spent of it, reserved and left, and when it renews."""
    name, limit, spent, left = budget["name"], budget["limit"], budget["spent"], budget["left"]
    reserved = limit - spent - left
    of_running = f"${reserved:.4f} is reserved for running turns, " if reserved >= SHOWN_USD_MIN else ""
    until = budget["renews_at"][:10]
    line = f"{name}: ${spent:.4f} of ${limit:g} is spent, {of_running}${left:.4f} is left until {until}"
    return line if left else f"{line}: new turns are refused"


def apply_change(own: Mapping[str, float], args: argparse.Namespace) -> dict[str, float]:
    """Returns the tenant's own limits after `--set` or `--remove`."""
    removed = [name.strip() for name in args.remove.split(",")] if args.remove is not None else []
    for name in removed:
        if name not in own:
            raise SettingsInvalid(f"{args.tenant} has no limit {name!r} of its own: it has {show(own)}")
    return {name: value for name, value in own.items() if name not in removed} | (args.set or {})


def show(values: Mapping[str, float | None]) -> str:
    return " ".join(f"{name}={value:g}" for name, value in values.items() if value is not None) or "-"
