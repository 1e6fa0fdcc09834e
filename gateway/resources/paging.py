"""A list by pages: which page a request asks for, and how one looks. It knows nothing of what is listed."""

import re
from typing import Generic, Literal, TypeVar

import msgspec
from starlette.requests import Request

from tailrace.proto.errors import Refused

LIMIT_MAX = 200
LIMIT = re.compile(r"[0-9]{1,4}")

R = TypeVar("R")


class Page(msgspec.Struct, Generic[R], frozen=True, kw_only=True):
    """The shape that OpenAI's and Anthropic's lists have; `next` is the `after` of the page that follows."""

    object: Literal["list"] = "list"
    data: list[R]
    has_more: bool
    next: str | None


def page_of(request: Request) -> tuple[str | None, int]:
    """The page asked for: `?after=` is the `next` of the page before, `?limit=` its size."""
    limit = limit_of(request, 50, LIMIT_MAX)
    if request.query_params.get("page", "1") != "1":
        # Taken for the first one again, whoever counts pages would never come to an end.
        raise Refused("request_invalid", "pages have no numbers: `after` is the `next` of the page before")
    return request.query_params.get("after"), limit


def limit_of(request: Request, usual: int, most: int) -> int:
    """How many `?limit=` asks for; `usual` when it is not there. Raises Refused."""
    limit = request.query_params.get("limit", str(usual))
    # Four digits: a text of thousands is no number to Python either.
    if LIMIT.fullmatch(limit) is None or not 1 <= int(limit) <= most:
        raise Refused("request_invalid", f"`limit` must be from 1 to {most}")
    return int(limit)
