"""The backends `bedrock` and `vertex`: the real SDKs against endpoints that check path, model and credentials."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from anthropic.lib.aws._auth import _get_session

from tailrace.features.backends import BACKENDS, Settings
from tailrace.features.bedrock.backend import Bedrock
from tailrace.features.vertex.backend import Vertex
from tailrace.generators.backends import Backend, Call
from tailrace.generators.backends.registry import open_backend
from tailrace.proto.entries import Message
from tailrace.proto.errors import BackendError, SettingsInvalid
from tests.harness.answers import answer_of
from tests.harness.cloud_endpoints import AWS_KEY, Cloud, running_cloud
from tests.harness.generator_in_loop import read_stats, words

SETTINGS = Settings(connect_timeout_s=1, stall_timeout_s=1.5)
each_cloud = pytest.mark.parametrize("backend", ["bedrock", "vertex"], indirect=True)


@pytest.fixture
async def clouds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cloud]:
    """The endpoints of both clouds, and their credentials in the environment."""
    # The developer may have AWS credentials.
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    # The SDK keeps the AWS session of the process, with the credentials of the test before.
    _get_session.cache_clear()  # type: ignore[attr-defined]
    async with running_cloud(tmp_path) as clouds:
        for name, value in clouds.environ.items():
            monkeypatch.setenv(name, value)
        yield clouds


@asynccontextmanager
async def new_backend(name: str) -> AsyncIterator[Backend]:
    backend = open_backend(name, SETTINGS, BACKENDS)
    yield backend
    await backend.close()


@pytest.fixture
async def backend(clouds: Cloud, request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    async with new_backend(request.param) as backend:
        yield backend


def call_of(backend: Backend, line: str, model: str = "claude-sonnet-5-5") -> Call:
    return Call(model=backend.model_id(model), max_tokens=1000, messages=[Message("user", f"#sim {line}")])


async def failure_of(backend: Backend, call: Call) -> BackendError:
    with pytest.raises(BackendError) as failure:
        async for _ in answer_of(backend, call):
            pass
    return failure.value


@each_cloud
async def test_an_answer_is_the_events_of_the_api(backend: Backend, clouds: Cloud) -> None:
    raw = [event.raw async for event in answer_of(backend, call_of(backend, "words=3 rate=0"))]
    events = [msgspec.json.decode(one) for one in raw]
    assert "".join(e["delta"]["text"] for e in events if e["type"] == "content_block_delta") == words(3)
    assert (events[0]["type"], events[-1]["type"]) == ("message_start", "message_delta")
    assert (await read_stats(clouds.url))["calls"] == 1


@pytest.mark.parametrize(
    ("backend", "model", "cloud_model"),
    [
        ("bedrock", "claude-sonnet-5-5", "anthropic.claude-sonnet-5-5"),
        ("bedrock", "claude-sonnet-4-5-20250929", "anthropic.claude-sonnet-4-5"),
        ("vertex", "claude-sonnet-5-5", "claude-sonnet-5-5"),
        ("vertex", "claude-sonnet-4-5", "claude-sonnet-4-5@20250929"),
        ("vertex", "claude-sonnet-4-5-20250929", "claude-sonnet-4-5@20250929"),
    ],
    indirect=["backend"],
)
def test_a_model_has_the_name_of_the_cloud(backend: Backend, model: str, cloud_model: str) -> None:
    assert backend.model_id(model) == cloud_model


@each_cloud
async def test_a_request_equals_that_of_the_sdk(backend: Backend, clouds: Cloud) -> None:
    assert isinstance(backend, Bedrock | Vertex)
    line = "words=1 rate=0"
    call = call_of(backend, line)
    async with await backend.client.messages.create(
        model=call.model, max_tokens=1000, messages=[{"role": "user", "content": f"#sim {line}"}], stream=True
    ) as stream:
        async for _ in stream:
            pass
    async for _ in answer_of(backend, call):
        pass
    theirs, ours = clouds.received
    assert (ours.path, ours.body) == (theirs.path, theirs.body)
    for header in ("anthropic-version", "content-type"):
        assert ours.headers.get(header) == theirs.headers.get(header)


@each_cloud
@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("fault=429", "backend_rate_limited"),
        ("words=9 rate=0 fault=error@3", "backend_overloaded"),
        ("words=x", "backend_refused_request"),
    ],
)
async def test_a_failure_has_the_code_of_the_same_failure_of_the_api(backend: Backend, line: str, code: str) -> None:
    assert (await failure_of(backend, call_of(backend, line))).code == code


@each_cloud
async def test_an_unknown_model_is_refused(backend: Backend) -> None:
    failure = await failure_of(backend, call_of(backend, "words=1", model="no-model"))
    assert failure.code == "model_not_found"


@pytest.mark.parametrize(
    ("name", "variable", "value"),
    [
        ("bedrock", "AWS_SECRET_ACCESS_KEY", "another-secret"),
        ("bedrock", "AWS_ACCESS_KEY_ID", ""),
        ("vertex", "GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/account.json"),
    ],
)
async def test_wrong_credentials_are_a_refused_key(
    clouds: Cloud, monkeypatch: pytest.MonkeyPatch, name: str, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    async with new_backend(name) as backend:
        failure = await failure_of(backend, call_of(backend, "words=1"))
    assert failure.code == "backend_refused_key"
    for secret in ("another-secret", AWS_KEY, "/nowhere"):
        assert secret not in str(failure)


def test_an_internal_error_of_bedrock_is_no_refused_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK signs a request in a thread. In a loop that shuts down none can start, which is a RuntimeError."""
    for name, value in {"AWS_REGION": "eu-west-1", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}.items():
        monkeypatch.setenv(name, value)

    async def call_without_threads() -> None:
        async with new_backend("bedrock") as backend:
            await asyncio.get_running_loop().shutdown_default_executor()
            async for _ in answer_of(backend, call_of(backend, "words=1")):
                pass

    with pytest.raises(RuntimeError, match="shutdown"):
        asyncio.run(call_without_threads())


async def test_an_unavailable_token_endpoint_is_a_refused_key(clouds: Cloud, tmp_path: Path) -> None:
    account = tmp_path / "account.json"
    account.write_bytes(account.read_bytes().replace(b"/token", b"/_sim/none"))
    async with new_backend("vertex") as backend:
        assert (await failure_of(backend, call_of(backend, "words=1"))).code == "backend_refused_key"


@pytest.mark.parametrize(
    ("name", "variable"),
    [
        ("bedrock", "AWS_REGION"),
        ("vertex", "CLOUD_ML_REGION"),
        ("vertex", "ANTHROPIC_VERTEX_PROJECT_ID"),
        ("claude", "ANTHROPIC_API_KEY"),
    ],
)
async def test_the_error_names_a_missing_variable(
    clouds: Cloud, monkeypatch: pytest.MonkeyPatch, name: str, variable: str
) -> None:
    for removed in (variable, "ANTHROPIC_BEDROCK_MANTLE_BASE_URL", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(removed, raising=False)
    with pytest.raises(SettingsInvalid, match=variable):
        open_backend(name, SETTINGS, BACKENDS)


@pytest.mark.parametrize(
    ("name", "library", "message"),
    [
        ("claud", "", r"'claud' is not one of claude, bedrock"),
        ("litellm", "litellm", "litellm is not installed: make litellm, and start it from"),
        ("bedrock", "botocore.exceptions", r"bedrock.*pip install 'tailrace\[bedrock\]'"),
    ],
)
def test_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, name: str, library: str, message: str) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"tailrace.features.{name}.backend", raising=False)
    with pytest.raises(SettingsInvalid, match=message):
        open_backend(name, SETTINGS, BACKENDS)
