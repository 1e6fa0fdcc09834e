"""The backends `bedrock` and `vertex`: the real SDK and the clouds' own libraries, before doors that check them."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from anthropic.lib.aws._auth import _get_session

from tailrace.generators.backends import Backend, Call
from tailrace.generators.backends.bedrock import Bedrock
from tailrace.generators.backends.registry import open_backend
from tailrace.generators.backends.vertex import Vertex
from tailrace.generators.settings import Settings
from tailrace.proto.entries import Message
from tailrace.proto.errors import BackendError, SettingsInvalid
from tests.harness.cloud_endpoints import AWS_KEY, Cloud, cloud
from tests.harness.generator_in_loop import open_streams, stats, words

CLOUDS = ("bedrock", "vertex")
SETTINGS = Settings(connect_timeout_s=1, stall_timeout_s=0.8)


@pytest.fixture
async def doors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cloud]:
    """Both clouds, and what has to be known of them in the environment."""
    # Whoever runs this may have credentials of their own.
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    # The SDK keeps AWS's session for the process: the test before had other credentials.
    _get_session.cache_clear()  # type: ignore[attr-defined]
    async with cloud(tmp_path) as there:
        for name, value in there.environ.items():
            monkeypatch.setenv(name, value)
        yield there


@pytest.fixture
async def backend(doors: Cloud, request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    opened = open_backend(request.param, SETTINGS)
    yield opened
    await opened.close()


def asking(backend: Backend, line: str, model: str = "claude-sonnet-5-5", **more: Any) -> Call:
    call = Call(model=backend.model_id(model), max_tokens=1000, messages=[Message("user", f"#sim {line}")])
    return msgspec.structs.replace(call, **more)


async def answer(backend: Backend, call: Call) -> list[dict[str, Any]]:
    return [msgspec.json.decode(event.raw) async for event in backend.answer(call)]


@pytest.mark.parametrize("backend", CLOUDS, indirect=True)
async def test_a_clouds_answer_is_the_events_that_are_stored(backend: Backend, doors: Cloud) -> None:
    """Signed or with a token, at the cloud's own address, under its own name of the model: the same events."""
    events = await answer(backend, asking(backend, "words=3 rate=0"))
    assert "".join(e["delta"]["text"] for e in events if e["type"] == "content_block_delta") == words(3)
    assert events[0]["type"] == "message_start"
    assert events[-1]["type"] == "message_delta"
    assert (await stats(doors.url))["calls"] == 1


@pytest.mark.parametrize(
    ("backend", "model", "named"),
    [
        ("bedrock", "claude-sonnet-5-5", "anthropic.claude-sonnet-5-5"),
        ("vertex", "claude-sonnet-5-5", "claude-sonnet-5-5"),
        ("vertex", "claude-sonnet-4-5", "claude-sonnet-4-5@20250929"),
    ],
    indirect=["backend"],
)
def test_a_model_has_the_clouds_name(backend: Backend, doors: Cloud, model: str, named: str) -> None:
    """As the tables of AWS and Google have it."""
    assert backend.model_id(model) == named


@pytest.mark.parametrize("backend", CLOUDS, indirect=True)
async def test_what_is_asked_is_what_the_sdk_itself_would_ask(backend: Backend, doors: Cloud) -> None:
    """Path, version and credentials are the SDK's business: ours must not drift away from it."""
    assert isinstance(backend, Bedrock | Vertex)
    call = asking(backend, "words=1 rate=0")
    async with await backend.client.messages.create(
        model=call.model, max_tokens=1000, messages=[{"role": "user", "content": "#sim words=1 rate=0"}], stream=True
    ) as told:
        async for _ in told:
            pass
    await answer(backend, call)
    theirs, ours = doors.asked
    assert (ours.path, ours.body) == (theirs.path, theirs.body)
    for header in ("anthropic-version", "content-type"):
        assert ours.headers.get(header) == theirs.headers.get(header)


@pytest.mark.parametrize("backend", CLOUDS, indirect=True)
@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("fault=429", "backend_rate_limited"),
        ("fault=529", "backend_overloaded"),
        ("fault=500", "backend_failed"),
        ("words=9 rate=0 fault=error@3", "backend_overloaded"),
        ("words=9 rate=0 fault=cut@3", "backend_broken"),
        ("words=9 rate=0 fault=eof@3", "backend_broken"),
        ("words=9 rate=0 fault=stall@3", "backend_stalled"),
        ("words=x", "backend_refused_request"),
    ],
)
async def test_a_clouds_failure_has_its_code(backend: Backend, doors: Cloud, line: str, code: str) -> None:
    """Whatever goes wrong behind the door is told as it is of Anthropic's own API."""
    with pytest.raises(BackendError) as failure:
        await answer(backend, asking(backend, line))
    assert failure.value.code == code


@pytest.mark.parametrize("backend", CLOUDS, indirect=True)
async def test_a_model_that_the_cloud_does_not_have_is_refused(backend: Backend, doors: Cloud) -> None:
    """A name without the cloud's own form never reaches the model."""
    with pytest.raises(BackendError) as failure:
        await answer(backend, asking(backend, "words=1", model="no-model"))
    assert failure.value.code in ("backend_refused_request", "backend_refused_key")


@pytest.mark.parametrize("backend", CLOUDS, indirect=True)
async def test_whoever_leaves_a_clouds_answer_stops_the_bill(backend: Backend, doors: Cloud) -> None:
    """Closing the iterator closes the connection, here as there."""
    told = backend.answer(asking(backend, "words=500 rate=50"))
    await anext(told)
    await open_streams(doors.url, 1)
    await told.aclose()
    await open_streams(doors.url, 0)


@pytest.mark.parametrize(
    ("name", "variable", "value"),
    [
        ("bedrock", "AWS_SECRET_ACCESS_KEY", "another-secret"),
        ("bedrock", "AWS_ACCESS_KEY_ID", ""),
        ("vertex", "GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/account.json"),
    ],
)
async def test_wrong_credentials_are_a_refused_key(
    doors: Cloud, monkeypatch: pytest.MonkeyPatch, name: str, variable: str, value: str
) -> None:
    """Another backend may have better ones: no exception of a cloud's library reaches the worker."""
    monkeypatch.setenv(variable, value)
    backend = open_backend(name, SETTINGS)
    try:
        with pytest.raises(BackendError) as failure:
            await answer(backend, asking(backend, "words=1"))
    finally:
        await backend.close()
    assert failure.value.code == "backend_refused_key"
    for secret in ("another-secret", AWS_KEY, "/nowhere"):
        assert secret not in str(failure.value)


async def test_a_token_that_nobody_gives_is_a_refused_key(doors: Cloud, tmp_path: Path) -> None:
    """Google's library asks for a token first, at an address of its own, which may be away."""
    account = tmp_path / "account.json"
    account.write_bytes(account.read_bytes().replace(b"/token", b"/_sim/none"))
    backend = open_backend("vertex", SETTINGS)
    try:
        with pytest.raises(BackendError) as failure:
            await answer(backend, asking(backend, "words=1"))
    finally:
        await backend.close()
    assert failure.value.code == "backend_refused_key"


@pytest.mark.parametrize(
    ("name", "variable"),
    [
        ("bedrock", "AWS_REGION"),
        ("vertex", "CLOUD_ML_REGION"),
        ("vertex", "ANTHROPIC_VERTEX_PROJECT_ID"),
        ("claude", "ANTHROPIC_API_KEY"),
    ],
)
async def test_what_a_backend_misses_is_said_by_its_name(
    doors: Cloud, monkeypatch: pytest.MonkeyPatch, name: str, variable: str
) -> None:
    """The process does not start, and says what to set."""
    for gone in (variable, "ANTHROPIC_BEDROCK_MANTLE_BASE_URL", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(gone, raising=False)
    with pytest.raises(SettingsInvalid, match=variable):
        open_backend(name, SETTINGS)


def test_a_backend_that_there_is_not_is_said_so() -> None:
    """A misspelt name would otherwise be found out by the first failure."""
    with pytest.raises(SettingsInvalid, match=r"'claud' is not one of claude, bedrock"):
        open_backend("claud", SETTINGS)


def test_who_names_litellm_is_told_of_its_own_venv(monkeypatch: pytest.MonkeyPatch) -> None:
    """`make setup` does not bring it."""
    monkeypatch.setitem(__import__("sys").modules, "litellm", None)
    monkeypatch.delitem(__import__("sys").modules, "tailrace.generators.backends.litellm", raising=False)
    with pytest.raises(SettingsInvalid, match="litellm is not installed: make litellm, and start it from"):
        open_backend("litellm", SETTINGS)


def test_a_clouds_own_library_need_not_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who does not use it does without it; who names it is told what to install."""
    monkeypatch.setitem(__import__("sys").modules, "botocore.exceptions", None)
    monkeypatch.delitem(__import__("sys").modules, "tailrace.generators.backends.bedrock")
    with pytest.raises(SettingsInvalid, match=r"bedrock.*pip install 'tailrace\[bedrock\]'"):
        open_backend("bedrock", SETTINGS)
