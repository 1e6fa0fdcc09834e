"""Reads a cookie of a request as it was sent, without Starlette's unquoting: Tailrace sets no quoted values.

Before Python 3.11.10 and 3.12.6, unquoting 60 kB of backslashes takes seconds (CVE-2024-7592), and pages need no key.
"""

from starlette.datastructures import Headers


def cookie_value(headers: Headers, name: str) -> str:
    """Returns the value of the first cookie of this name; an empty string if there is none."""
    pairs = (pair.partition("=") for header in headers.getlist("cookie") for pair in header.split(";"))
    return next((value.strip() for key, _, value in pairs if key.strip() == name), "")
