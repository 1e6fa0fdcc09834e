"""The URLs of PostgreSQL, and how messages show them."""

import re

SCHEMES = ("postgresql", "postgres")
FORM = "postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
# An @ after the start of an option: part of its value, or the end of a password that contains `?`.
OPTION_WITH_AT = re.compile(r"\?\w+=.*@", re.DOTALL)


def display(url: str) -> str:
    """Returns a URL without its password and its options."""
    rest = url.partition("://")[2]
    # The last @ counts: a password that was not encoded may contain @, / or ?.
    credentials, at, host = rest.rpartition("@")
    if "password" in rest or OPTION_WITH_AT.search(rest):
        return "postgresql://…"
    return f"postgresql://{credentials.partition(':')[0]}{at}{host.partition('?')[0]}"
