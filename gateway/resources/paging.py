"""Paging of lists: the query parameters `after` and `limit`, and the response body."""

import re
from typing import Generic, Literal, TypeVar

import msgspec
from starlette.requests import Request

from tailrace.proto.errors import Refused

LIMIT_MAX = 200
LIMIT = re.compile(r"[0-9]{1,4}")

R = TypeVar("R")


class Page(msgspec.Struct, Generic[R], frozen=True, kw_only=True):
    """One page, in the format of OpenAI's and Anthropic's lists; `next` is the `after` of the next page."""

    object: Literal["list"] = "list"
    data: list[R]
    has_more: bool
    next: str | None


def page_of(request: Request) -> tuple[str | None, int]:
    """Returns `?after=`, which is the `next` of the previous page, and `?limit=`. Raises Refused."""
    limit = limit_of(request, 50, LIMIT_MAX)
    if request.query_params.get("page", "1") != "1":
        # A client that counts pages would get the first page again and again.
        raise Refused("request_invalid", "`page` is not supported; send the `next` of the previous page as `after`.")
    return request.query_params.get("after"), limit


def limit_of(request: Request, default: int, most: int) -> int:
    """Returns `?limit=`, or `default` without it. Raises Refused unless it is from 1 to `most`."""
    limit = request.query_params.get("limit", str(default))
    # At most four digits: Python refuses to convert thousands of digits.
    if LIMIT.fullmatch(limit) is None or not 1 <= int(limit) <= most:
        raise Refused("request_invalid", f"`limit` must be from 1 to {most}.")
    return int(limit)
