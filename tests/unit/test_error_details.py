"""`error.details` of the model's API, as Anthropic's SDK reads it from the responses and streams of Tailrace."""

import anthropic
import httpx2
import msgspec
import pytest
from anthropic._error_classes import make_status_error
from anthropic.types.image_dimensions_too_large_error_details import ImageDimensionsTooLargeErrorDetails

from tailrace.gateway.http import sse
from tailrace.gateway.http.error_responses import render_error
from tailrace.gateway.streaming.response import refusal_of
from tailrace.proto.end_entry import build_end
from tailrace.proto.entries import Failure, StoredEntry
from tailrace.proto.ids import Seq, TurnId
from tailrace.protocols.anthropic.stream import ANTHROPIC
from tests.harness.sse_parser import parse
from tests.harness.turn_builder import KEY, NOON, attempted_turn

DETAILS = {
    "error_code": "image_dimensions_too_large",
    "max_side_length_pixels": 8000,
    "paths": ["messages.0.content.1"],
}
FAILURE = Failure("backend_refused_request", "an image is too large", details=DETAILS)


def error_of(status: int, body: bytes) -> anthropic.APIStatusError:
    response = httpx2.Response(status, request=httpx2.Request("POST", "http://127.0.0.1"))
    return make_status_error("x", body=msgspec.json.decode(body), response=response)


@pytest.mark.rule("R134")
def test_the_sdk_raises_the_class_of_the_apis_error() -> None:
    """For an error before the stream."""
    response = render_error(refusal_of(FAILURE, TurnId("t"), may_repeat=False), {"type": "http"})
    error = error_of(response.status_code, bytes(response.body))
    assert type(error).__name__ == "ImageDimensionsTooLargeError"
    assert isinstance(error.details, ImageDimensionsTooLargeErrorDetails)
    assert error.details.paths == ["messages.0.content.1"]


@pytest.mark.rule("R134")
@pytest.mark.parametrize("details", [DETAILS, None])
def test_an_error_event_has_the_details(details: dict[str, object] | None) -> None:
    """The status of a stream is 200, so the SDK has no class for it, and the program reads `error_code`."""
    end = build_end(attempted_turn().turn, "failed", msgspec.structs.replace(FAILURE, details=details))
    frame, _ = ANTHROPIC.render(ANTHROPIC.start(KEY), StoredEntry(Seq(7), NOON, end))
    (event,) = parse(sse.encode(frame.events))
    error = error_of(200, event.data.encode())
    assert error.error_code == (details and details["error_code"])
    assert msgspec.json.decode(event.data)["error"].get("details") == details
