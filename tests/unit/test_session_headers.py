"""The headers X-Session-ID and X-Project-ID of OpenAI's two protocols."""

import msgspec
import pytest

from tailrace.proto.errors import Refused
from tailrace.protocols.common.session_headers import apply_session_headers
from tailrace.protocols.openai.chat_request import ChatCompletionRequest

BODY = msgspec.convert({"messages": [{"role": "user", "content": "hi"}]}, ChatCompletionRequest)


def test_headers_name_the_session_and_the_project() -> None:
    named = apply_session_headers(BODY, {"x-session-id": "rivers", "x-project-id": "water"})
    assert (named.session_id, named.project_id) == ("rivers", "water")
    with pytest.raises(Refused, match="`session_id` and the header x-session-id differ"):
        apply_session_headers(named, {"x-session-id": "lakes"})


@pytest.mark.parametrize(
    ("affinity", "session"), [("ses_1", None), ("node-3", "ses_1")], ids=["opencode", "another affinity"]
)
def test_session_header_that_repeats_the_affinity_names_no_session(affinity: str, session: str | None) -> None:
    """opencode sends both with every request: with the first question, and at the same time with that for a title."""
    headers = {"x-session-affinity": affinity, "x-session-id": "ses_1", "x-project-id": "water"}
    applied = apply_session_headers(BODY, headers)
    assert (applied.session_id, applied.project_id) == (session, "water")
