"""Paging of lists: the query parameters `after` and `limit`, or `page` and `per_page`, and the response body."""

import re
from collections.abc import Sequence
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import msgspec
from starlette.requests import Request

from tailrace.proto.errors import Refused
from tailrace.proto.records import PAGE_ITEMS_MAX

LIMIT = re.compile(r"[0-9]{1,4}")
PAGE = re.compile(r"[1-9][0-9]{0,8}")

R = TypeVar("R")


class Page(msgspec.Struct, Generic[R], frozen=True, kw_only=True):
    """One page, in the format of OpenAI's and Anthropic's lists; `next` is the `after` of the next page."""

    object: Literal["list"] = "list"
    """The type of this object in OpenAI's API."""
    data: list[R]
    """The items of this page."""
    # Follows from `next`. A factory, because the OpenAPI document shows defaults.
    has_more: bool = msgspec.field(default_factory=bool)
    """Whether there is a next page."""
    next: str | None
    """The `after` of the next page; null on the last."""

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "has_more", self.next is not None)


class Pagination(msgspec.Struct, frozen=True, kw_only=True):
    """The position of a page by its number, with the field names of other servers for Claude."""

    page: int
    """The number of this page, from 1."""
    per_page: int
    """The most items of a page."""
    total_items: int
    """The number of all items."""
    total_pages: int
    """The number of all pages."""
    has_next: bool
    """Whether there is a next page."""
    has_prev: bool
    """Whether there is a previous page."""


class NumberedPage(Page[R], frozen=True, kw_only=True):
    """A page that can also be requested by its number.

    `pagination` is null for a page after a cursor, and for a page that does not fit in one answer.
    """

    pagination: Pagination | None
    """The position of this page by its number; null after a cursor, or if the page does not fit in one answer."""


class PageNumber(NamedTuple):
    """The page that a request wants: after a cursor, or by its number."""

    after: str | None
    limit: int
    number: int
    is_numbered: bool
    """Whether the request names the number of the page."""

    @property
    def offset(self) -> int | None:
        """The number of items before the page; None after a cursor."""
        return (self.number - 1) * self.limit if self.after is None else None

    def pagination(self, total: int | None, shown: int, *, has_more: bool) -> Pagination | None:
        """Returns the fields for a list of `total` items, of which the page has `shown`; None after a cursor.

        A page is shorter than its limit if not all of it fits in one answer. The next number would skip the rest: then
        this raises Refused for a client that counts pages, and returns None for others, which use the cursor.
        """
        if total is None or self.after is not None:
            return None
        if has_more and shown < self.limit:
            if self.is_numbered:
                why = f"only {shown} items of this page fit in one answer: send a smaller `per_page`, or use `after`"
                raise Refused("request_invalid", why, param="per_page")
            return None
        pages = -(-total // self.limit)
        return Pagination(
            page=self.number,
            per_page=self.limit,
            total_items=total,
            total_pages=pages,
            has_next=self.number < pages,
            has_prev=self.number > 1,
        )


def number_of(request: Request) -> PageNumber:
    """Returns `?after=` or `?page=`, and `?limit=` or `?per_page=`, which mean the same. Raises Refused."""
    query = request.query_params
    if "limit" in query and "per_page" in query:
        raise Refused("request_invalid", "`limit` and `per_page` mean the same: send one of them.")
    if "after" in query and "page" in query:
        raise Refused("request_invalid", "`after` and `page` exclude each other: send one of them.")
    number = query.get("page", "1")
    if PAGE.fullmatch(number) is None:
        raise Refused("request_invalid", "`page` must be a number from 1.")
    limit = limit_of(request, 50, PAGE_ITEMS_MAX, "per_page" if "per_page" in query else "limit")
    return PageNumber(query.get("after"), limit, int(number), "page" in query)


def require_one_cursor(request: Request, *names: str) -> None:
    """Raises Refused if the request has several of these query parameters."""
    if len(sent := [name for name in names if name in request.query_params]) > 1:
        named = " and ".join(f"`{name}`" for name in sent)
        raise Refused("request_invalid", f"{named} exclude each other: send one of them.")


def page_of(request: Request) -> tuple[str | None, int]:
    """Returns `?after=`, which is the `next` of the previous page, and `?limit=`. Raises Refused."""
    limit = limit_of(request, 50, PAGE_ITEMS_MAX)
    if request.query_params.get("page", "1") != "1":
        # A client that counts pages would get the first page again and again.
        raise Refused("request_invalid", "`page` is not supported here; send the previous `next` as `after`.")
    return request.query_params.get("after"), limit


def list_page(data: Sequence[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """Returns the fields of one page of a list in OpenAI's and Anthropic's APIs."""
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"data": data, "first_id": first, "last_id": last, "has_more": has_more}


def is_newest_first(request: Request, default: Literal["asc", "desc"]) -> bool:
    """Returns whether `?order=` is `desc`; without it, whether `default` is. Raises Refused for another value."""
    order = request.query_params.get("order", default)
    if order not in ("asc", "desc"):
        raise Refused("request_invalid", "`order` must be `asc` or `desc`")
    return order == "desc"


def limit_of(request: Request, default: int, most: int, name: str = "limit") -> int:
    """Returns `?limit=`, or `default` without it. Raises Refused unless it is from 1 to `most`."""
    limit = request.query_params.get(name, str(default))
    # At most four digits: Python refuses to convert thousands of digits.
    if LIMIT.fullmatch(limit) is None or not 1 <= int(limit) <= most:
        raise Refused("request_invalid", f"`{name}` must be from 1 to {most}.")
    return int(limit)
