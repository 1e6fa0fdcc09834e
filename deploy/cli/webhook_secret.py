"""`tailrace webhook-secret`: shows the secret with which a tenant's webhooks are signed."""

import argparse
from collections.abc import Mapping

from tailrace.deploy.cli.arguments import add_json, add_tenant
from tailrace.deploy.cli.result import print_result
from tailrace.features.webhooks import signature
from tailrace.proto.errors import SettingsInvalid

DESCRIPTION = "Show the secret with which a tenant's webhooks are signed."
EXAMPLES = """\
Give it to the receiver's Standard Webhooks library (https://www.standardwebhooks.com). The secret is not stored: it is
derived from TAILRACE_WEBHOOK_KEY and the tenant's name.

  TAILRACE_WEBHOOK_KEY=… tailrace webhook-secret --tenant acme
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    add_tenant(parser)


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Prints the secret `whsec_…` of the tenant. Raises SettingsInvalid without TAILRACE_WEBHOOK_KEY."""
    signing = signature.parse_keys(environ.get("TAILRACE_WEBHOOK_KEY", ""))
    if not signing:
        raise SettingsInvalid("TAILRACE_WEBHOOK_KEY is not set: set it to the key that persistence uses")
    secret = signature.format_secret(signature.derive_secret(signing[0], args.tenant))
    print_result(args, secret, tenant=args.tenant, secret=secret)
    return 0
