"""The input file of a batch: JSON lines, each a request for the batch's endpoint, and the turns that they become.

A line that is no request makes the whole batch invalid. A request that its route would refuse is one of the batch's
errors. Source: OpenAI's API reference, "Batch", and its guide "Batch API".
"""

from collections.abc import Awaitable, Callable
from io import BytesIO
from itertools import islice
from typing import Any, NamedTuple

import msgspec

from tailrace.features.batches.new_batch import INPUTS_MAX, InputChecker
from tailrace.gateway.http.error_responses import Problem
from tailrace.gateway.http.large_bodies import convert_body
from tailrace.gateway.http.read_body import VALUES_MAX, BodyReader, count_values
from tailrace.gateway.models.offer import Offer
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.errors import CODES, Refused
from tailrace.protocols.common.built_turn import BuiltTurn
from tailrace.protocols.common.field_names import name_as_client
from tailrace.protocols.openai import chat_request, responses_request

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
CUSTOM_ID_CHARS_MAX = 256
# Empty lines count.
LINES_MAX = 10 * INPUTS_MAX
# The most values of all requests, which are decoded and kept until the batch is stored. A value takes up to 150 bytes.
FILE_VALUES_MAX = 10 * VALUES_MAX
# As many as OpenAI lists.
LINE_ERRORS_MAX = 100
QUOTED_CHARS_MAX = 100
STREAMED = "an input of a batch cannot be streamed: leave `stream` and `background` out"
CONTINUED = "an input of a batch cannot continue a conversation or name a project: send the whole conversation"

UNSTORED = "the results of a batch are made from its stored turns: leave `store: false` out"


class LineError(msgspec.Struct, frozen=True):
    """The error of a line that is not a valid request, in the format of OpenAI's `errors`."""

    code: str
    message: str
    param: str | None
    line: int | None


class Request(NamedTuple):
    custom_id: str
    body: bytes


class _Line(msgspec.Struct, frozen=True):
    custom_id: str = ""
    method: str = "POST"
    url: str = ""
    body: msgspec.Raw = msgspec.Raw()


_line = msgspec.json.Decoder(_Line)


def parse_lines(content: bytes, endpoint: str) -> tuple[list[Request], list[LineError]]:
    """Returns the requests of an input file, and what is wrong with its other lines."""
    requests: list[Request] = []
    errors: list[LineError] = []
    names: set[str] = set()
    values = 0
    # Lazily: a list of the lines of a file with millions would take fifty times its size.
    lines = ((number, line) for number, line in enumerate(BytesIO(content), 1) if line.strip())
    is_long = content.count(b"\n") > LINES_MAX
    numbered = [] if is_long else list(islice(lines, INPUTS_MAX + 1))
    if is_long or len(numbered) > INPUTS_MAX:
        message = f"The input file has more than {INPUTS_MAX} requests; a batch has at most {INPUTS_MAX}."
        return [], [LineError("too_many_tasks", message, None, None)]
    if not numbered:
        return [], [LineError("empty_file", "The input file has no requests.", None, None)]
    for number, text in numbered:
        try:
            line = _line.decode(text)
        except DECODE_ERRORS as error:
            is_other = isinstance(error, msgspec.ValidationError)
            message = str(error)[:QUOTED_CHARS_MAX] if is_other else "This line is not parseable as valid JSON."
            errors.append(LineError("invalid_json_line", message, None, number))
            continue
        found = _problem(line, endpoint, names)
        names.add(line.custom_id)
        if found is not None:
            errors.append(LineError(*found, number))
            continue
        requests.append(Request(line.custom_id, bytes(line.body)))
        values += count_values(requests[-1].body)
        if values > FILE_VALUES_MAX:
            message = f"The requests have more than {FILE_VALUES_MAX} JSON values together; split the input file."
            return [], [LineError("too_many_values", message, None, number)]
    return requests, errors[:LINE_ERRORS_MAX]


def _problem(line: _Line, endpoint: str, names: set[str]) -> tuple[str, str, str] | None:
    """Returns the code, message and parameter of what is wrong with a line, or None."""
    name = line.custom_id[:QUOTED_CHARS_MAX]
    if not 0 < len(line.custom_id) <= CUSTOM_ID_CHARS_MAX:
        message = f"`custom_id` must have 1 to {CUSTOM_ID_CHARS_MAX} characters."
        return "missing_required_parameter", message, "custom_id"
    if line.custom_id in names:
        return "duplicate_custom_id", f"Another request has the custom_id '{name}'. It must be unique.", "custom_id"
    if line.method != "POST":
        return "invalid_method", "`method` must be POST.", "method"
    if line.url != endpoint:
        return "invalid_url", f"`url` must be the endpoint of the batch, {endpoint}.", "url"
    if not bytes(line.body).startswith(b"{"):
        return "missing_required_parameter", "`body` must be a JSON object.", "body"
    return None


async def add_request(custom_id: str, body: bytes, endpoint: str, bodies: BodyReader, inputs: InputChecker) -> None:
    """Adds a request to `inputs`. Raises Refused as the request's own route does."""
    turn, _, names = await BUILDERS[endpoint](body, bodies, inputs.offer)
    is_alone = turn.session is None and turn.project is None and turn.parent is msgspec.UNSET
    if not is_alone:
        raise Refused("request_invalid", CONTINUED)
    if not turn.store:
        raise Refused("request_invalid", UNSTORED, param="store")
    with name_as_client(names):
        await inputs.add(custom_id, turn)


async def _chat_turn(body: bytes, bodies: BodyReader, offer: Offer) -> BuiltTurn:
    fields = await bodies.decode(body, dict[str, Any])
    chat = chat_request.convert(fields)
    if chat.stream:
        raise Refused("request_invalid", STREAMED, param="stream")
    return await convert_body(len(body), chat_request.build_turn, chat, offer.model(chat.model), fields, offer.models)


async def _response_turn(body: bytes, bodies: BodyReader, offer: Offer) -> BuiltTurn:
    response = await bodies.decode(body, responses_request.ResponseRequest)
    if response.stream or response.background:
        raise Refused("request_invalid", STREAMED, param="stream")
    model = offer.model(response.model)
    return await convert_body(len(body), responses_request.build_turn, response, model, offer.models)


BUILDERS: dict[str, Callable[[bytes, BodyReader, Offer], Awaitable[BuiltTurn]]] = {
    CHAT: _chat_turn,
    RESPONSES: _response_turn,
}


def error_line(custom_id: str, refused: Refused) -> dict[str, Any]:
    """Returns the line of the error file for a request that its route would refuse."""
    row = CODES[refused.code]
    problem = Problem(refused.message, row.type, refused.code, refused.param)
    return {
        "id": None,
        "custom_id": custom_id,
        "response": {"status_code": row.status, "request_id": None, "body": {"error": problem}},
        "error": None,
    }
