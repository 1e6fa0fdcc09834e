"""Refuses headers and fields that choose the workspace or another payer in a request to Claude's API.

All clients share the server's key. With these fields, any client could spend in a workspace that the operator keeps for
something else, or charge a customer of the operator (`billing_policy`).
"""

from collections.abc import Mapping
from typing import Any

from tailrace.proto.errors import Refused

PROFILE = "the server's own account pays for each call: leave it out, and name the end user in `metadata.user_id`"
WORKSPACE = (
    "the server's own key decides which workspace is used: leave it out. The operator can run a Tailrace for another "
    "workspace, with a key of that workspace"
)
HEADERS = {"anthropic-workspace-id": WORKSPACE, "anthropic-user-profile-id": PROFILE}
FIELDS = {"workspace_id": WORKSPACE, "user_profile_id": PROFILE}


def refuse_account_headers(headers: Mapping[str, str]) -> None:
    """Raises Refused for a header that chooses an account."""
    for name, advice in HEADERS.items():
        if name in headers:
            raise Refused("request_invalid", f"the header `{name}` is not supported: {advice}", param=name)


def refuse_account_fields(options: Mapping[str, Any]) -> None:
    """Raises Refused for a field of a model call that chooses an account."""
    for name, advice in FIELDS.items():
        if name in options:
            raise Refused("request_invalid", f"`{name}` is not supported: {advice}", param=name)
    match options:
        case {"billing_policy": {"bill_to": bill_to}} if bill_to != "self":
            raise Refused("request_invalid", f"`billing_policy` is not supported: {PROFILE}", param="billing_policy")
