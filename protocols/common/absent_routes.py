"""Advice for routes of other APIs that do not exist here, for the message of their 404. Pure."""

from collections.abc import Mapping

NO_AGENTS = "there are no hosted agents: run the agent in your own program, with POST /v1/messages or /v1/responses"
OWN_KEYS = "the keys and their usage are Tailrace's own: see GET /v1/usage"


def message_for(path: str, advice: Mapping[str, str]) -> str | None:
    """Returns the message for a path without a route, with the advice for the path or its nearest parent, or None.

    A path of `advice` that ends with a slash is a route without the slash.
    """
    # Do not look up each parent: a path of 60,000 slashes has 60,000, and each is a copy.
    found = (text for key, text in advice.items() if path == key or path.startswith(f"{key.removesuffix('/')}/"))
    return next((f"this route does not exist here: {text}" for text in found), None)
