"""The ids of end users that the model's API receives: opaque, as Anthropic requires. Pure.

The API refuses a `metadata.user_id` that looks like an email address ("user_id appears to contain an email address.
Please send a uuid or hash value instead") or has more than 256 characters, and its reference forbids names, email
addresses and phone numbers. Many clients send one of these as OpenAI's `user`. PROTOCOL R39.
"""

import re
from collections.abc import Callable
from typing import Any

CHARS_MAX = 256
# An email address anywhere in the id; an id that is a phone number with its country code.
PERSONAL = re.compile(r"[^\s@]@[^\s@]|\A\s*(?:tel:)?\+[0-9 ().-]{7,}\Z")


def with_opaque_user(options: dict[str, Any], pseudonym: Callable[[str], str]) -> dict[str, Any]:
    """Returns the options of a call with a pseudonym in place of a `user_id` that the API would refuse."""
    match options:
        case {"metadata": {"user_id": str(user)} as metadata} if len(user) > CHARS_MAX or PERSONAL.search(user):
            return {**options, "metadata": {**metadata, "user_id": pseudonym(user)}}
        case _:
            return options
