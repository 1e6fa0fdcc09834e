"""Parses a `multipart/form-data` body (RFC 7578) that is in memory: text fields and at most one file."""

import asyncio
import logging
import re
from collections.abc import AsyncGenerator
from typing import NamedTuple

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.http.media_type import FORM
from tailrace.proto.errors import Refused

# It warns of malformed forms, which the error response reports.
logging.getLogger("python_multipart").setLevel(logging.ERROR)

PIECE_BYTES = 256 * 1024
FIELDS_MAX = 16
FIELD_BYTES_MAX = 4 * 1024
# The characters of RFC 2046, section 5.1.1, which allows 70 of them. Anthropic's SDK for PHP (0.43.0) sends 80.
BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,127}[0-9A-Za-z'()+_,./:=?-]")


class FormFile(NamedTuple):
    """A part with a filename. `media_type` is its `Content-Type`, or an empty string."""

    field: str
    filename: str
    media_type: str
    content: bytes


class Form(NamedTuple):
    fields: dict[str, str]
    file: FormFile | None


async def read_form(request: ApiRequest) -> Form:
    """Returns the fields and the file of the body. Raises Refused."""
    return await parse_form(await request.read_bytes(frozenset({FORM})), request.headers)


async def parse_form(body: bytes, headers: Headers) -> Form:
    """Returns the fields and the file of `body`. Raises Refused if it is malformed, or has a field twice."""
    # Only the boundary: the parser would look up any `charset` as a codec, and Python keeps each name for ever. Names
    # of fields are UTF-8 (RFC 7578, section 5.1).
    headers = Headers({"content-type": f'multipart/form-data; boundary="{_boundary(headers)}"'})
    parser = MultiPartParser(
        headers, _split_body(body), max_files=1, max_fields=FIELDS_MAX, max_part_size=FIELD_BYTES_MAX
    )
    # The memory for the body is reserved: nothing goes to the disk.
    parser.spool_max_size = len(body) + 1
    try:
        parsed = await parser.parse()
    except MultiPartException as error:
        raise Refused("request_invalid", f"the form cannot be read: {error.message}") from error
    fields: dict[str, str] = {}
    file: FormFile | None = None
    try:
        for name, value in parsed.multi_items():
            if isinstance(value, UploadFile):
                content = await value.read()
                file = FormFile(name, value.filename or "", value.headers.get("content-type", ""), content)
            elif name in fields:
                raise Refused("request_invalid", f"the form has the field `{name[:64]}` twice: send it once")
            else:
                fields[name] = value
    finally:
        await parsed.close()
    return Form(fields, file)


def _boundary(headers: Headers) -> str:
    _, parameters = parse_options_header(headers.get("content-type"))
    boundary = parameters.get(b"boundary", b"").decode("latin-1")
    if BOUNDARY.fullmatch(boundary) is None:
        raise Refused("request_invalid", "the form cannot be read: its Content-Type has no valid boundary (RFC 2046)")
    return boundary


async def _split_body(body: bytes) -> AsyncGenerator[bytes, None]:
    """Yields the body in pieces, between which the event loop serves other requests."""
    for start in range(0, len(body), PIECE_BYTES):
        yield body[start : start + PIECE_BYTES]
        await asyncio.sleep(0)
