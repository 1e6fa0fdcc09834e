"""`tailrace limits`: shows and sets the limits of tenants, over `/v1/admin`."""

import argparse
from collections.abc import Mapping
from typing import Any

import msgspec

from tailrace.deploy.cli.arguments import add_connection, add_json, tenant
from tailrace.deploy.cli.connection import connect
from tailrace.deploy.cli.keys import limits
from tailrace.deploy.local.terminal_text import table
from tailrace.proto.errors import SettingsInvalid

DESCRIPTION = "Show or replace the limits of tenants. All gateways apply a change within a second."
EXAMPLES = """\
examples:
  tailrace limits                                          the limits of all tenants with a key or limits of their own
  tailrace limits acme                                     those of one tenant
  tailrace limits acme --set requests=600,usd_month=500    replaces all of its own limits
  tailrace limits acme --clear                             removes its own limits: those of the settings apply
  tailrace limits --json | jq '.[].effective'

The key needs the scope `admin`. docs/LIMITS.md has the names of the limits.
"""
HEADINGS = ("TENANT", "OWN", "EFFECTIVE")
PAGE = "200"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tenant", type=tenant, nargs="?", metavar="TENANT", help="the tenant (default: all)")
    change = parser.add_mutually_exclusive_group()
    change.add_argument("--set", type=limits, metavar="NAME=NUMBER,…", help="the new limits; others are removed")
    change.add_argument("--clear", dest="set", action="store_const", const={}, help="remove the tenant's own limits")
    add_json(parser)
    add_connection(parser)


def run(given: argparse.Namespace, environ: Mapping[str, str]) -> int:
    if given.set is not None and given.tenant is None:
        raise SettingsInvalid("--set and --clear need a TENANT: name the one whose limits change")
    path, found = f"/v1/admin/tenants/{given.tenant}/limits", list[dict[str, Any]]()
    with connect(given, environ) as client:
        if given.set is not None:
            found.append(client.request("PUT", path, {"limits": given.set}))
        elif given.tenant is not None:
            found.append(client.request("GET", path))
        else:
            page = {"next": ""}
            while page["next"] is not None:
                params = {"limit": PAGE} | ({"after": page["next"]} if page["next"] else {})
                page = client.request("GET", "/v1/admin/tenants", params=params)
                found += page["data"]
    if given.json:
        print(msgspec.json.encode(found).decode())
    else:
        print(table([HEADINGS, *((one["tenant"], show(one["limits"]), show(one["effective"])) for one in found)]))
    return 0


def show(values: Mapping[str, float | None]) -> str:
    return " ".join(f"{name}={value:g}" for name, value in values.items() if value is not None) or "-"
