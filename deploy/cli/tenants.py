"""`tailrace tenants`: lists the tenants, and sets whether their users are private, over `/v1/admin`."""

import argparse
from collections.abc import Mapping
from typing import Any

from tailrace.deploy.cli.arguments import add_connection, add_json, tenant
from tailrace.deploy.cli.connection import connect
from tailrace.deploy.cli.limits import PAGE, show
from tailrace.deploy.cli.result import print_json
from tailrace.deploy.local.terminal_text import table

DESCRIPTION = "List the tenants, or set whether the users of a tenant are private."
EXAMPLES = """\
examples:
  tailrace tenants list                              the tenants with a key, private users or limits of their own
  tailrace tenants list --json | jq '.[].users'
  tailrace tenants set acme --users private          each user of acme uses only what it owns
  tailrace tenants set acme --users shared           the users of acme use everything of acme

The key needs the scope `admin`. docs/AUTH.md says what private users are.
"""
HEADINGS = ("TENANT", "USERS", "LIMITS")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="list the tenants", allow_abbrev=False)
    listing.set_defaults(tenant=None)
    setting = actions.add_parser("set", help="change the setting of a tenant", allow_abbrev=False)
    setting.add_argument("tenant", type=tenant, metavar="TENANT", help="the tenant")
    setting.add_argument(
        "--users", required=True, choices=("shared", "private"), help="private: each user uses only what it owns"
    )
    for action in (listing, setting):
        add_json(action)
        add_connection(action)


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Lists the tenants, or changes one and shows it. Raises SettingsInvalid, GatewayFailed."""
    found = list[dict[str, Any]]()
    with connect(args, environ) as client:
        if args.tenant is None:
            found += client.items("/v1/admin/tenants", {"limit": PAGE})
        else:
            found.append(client.request("PUT", f"/v1/admin/tenants/{args.tenant}", {"users": args.users}))
    if args.json:
        print_json(found)
    else:
        print(table([HEADINGS, *((one["tenant"], one["users"], show(one["limits"])) for one in found)]))
    return 0
