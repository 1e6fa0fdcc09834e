"""The backend `claude_code`: the real CLI with the simulated Claude, in a folder that it cannot leave."""

import asyncio
import json
import os
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGKILL
from typing import Any

import msgspec
import pytest

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.deploy.simulated_claude.server import run_simulated_claude
from tailrace.features.backends import BACKENDS, Settings
from tailrace.features.claude_code.backend import ClaudeCode, build_prompt, find
from tailrace.generators.backends import Call
from tailrace.generators.backends.registry import open_backend
from tailrace.proto.entries import Message
from tailrace.proto.errors import BackendError, SettingsInvalid
from tailrace.proto.nats import TurnLog
from tailrace.proto.schema import with_schema
from tests.clients import node
from tests.harness import processes
from tests.harness.answers import answer_of
from tests.harness.generator_in_loop import (
    append_request,
    read_attempts,
    read_last_request,
    read_stats,
    running_generator,
    wait_for_end,
    wait_for_open_streams,
    words,
)
from tests.harness.until import until

BINARY = node.MODULES / "@anthropic-ai/claude-code-linux-x64/claude"
# On a machine that is busy with other tests.
STALL_TIMEOUT_S = 20.0
MANY_TRIES_S = 30.0


@pytest.fixture
async def claude() -> AsyncIterator[str]:
    """The URL of a simulated Claude of this test."""
    async with run_simulated_claude() as url:
        yield url


def new_backend(claude: str, root: Path, **given: Any) -> ClaudeCode:
    settings: dict[str, Any] = {
        "anthropic_base_url": claude,
        "anthropic_api_key": "sk-secret-key",
        "claude_code_binary": str(BINARY),
        "claude_code_root": root / "projects",
        "stall_timeout_s": STALL_TIMEOUT_S,
    }
    backend = open_backend("claude_code", Settings(**settings | given), BACKENDS)
    assert isinstance(backend, ClaudeCode)
    return backend


def build_call(line: str, **more: Any) -> Call:
    messages = [Message("user", f"#sim {line}")]
    call = Call(model="claude-sonnet-5-5", max_tokens=1000, messages=messages, tenant="acme", project="shop")
    return msgspec.structs.replace(call, **more)


def tool_question(tool: str, **fields: str) -> Call:
    """A question whose answer begins with a call of this tool."""
    return build_call(f"words=2 rate=0 tool={tool} json={json.dumps(fields, separators=(',', ':'))}")


async def answer(backend: ClaudeCode, call: Call) -> list[dict[str, Any]]:
    return [msgspec.json.decode(event.raw) async for event in answer_of(backend, call)]


def text(events: list[dict[str, Any]]) -> str:
    return "".join(e["delta"].get("text", "") for e in events if e["type"] == "content_block_delta")


async def results(claude: str) -> list[dict[str, Any]]:
    """The tool results that the model has received."""
    blocks = [
        m["content"] for m in (await read_last_request(claude))["body"]["messages"] if isinstance(m["content"], list)
    ]
    return [block for content in blocks for block in content if block["type"] == "tool_result"]


async def test_claude_codes_answer_is_one_message(claude: str, tmp_path: Path) -> None:
    """It reads files in the folder of the project; the tool result goes to its model only."""
    folder = tmp_path / "projects/acme/shop"
    folder.mkdir(parents=True)
    (folder / "note.txt").write_text("the tailrace is dry")
    call = msgspec.structs.replace(tool_question("Read", file_path=str(folder / "note.txt")), system="Be brief.")
    events = await answer(new_backend(claude, tmp_path), call)
    (result,) = await results(claude)
    assert "the tailrace is dry" in json.dumps(result)
    assert "dry" not in json.dumps(events)
    assert (text(events), (await read_stats(claude))["calls"]) == (words(2) * 2, 2)
    assert [events[0]["type"], events[-1]["type"]] == ["message_start", "message_delta"]
    assert events[-1]["usage"]["output_tokens"] == len(words(2).split())
    model_request = (await read_last_request(claude))["body"]
    assert model_request["model"] == "claude-sonnet-5-5"
    assert "Be brief." in json.dumps(model_request["system"])


@pytest.mark.rule("S18")
@pytest.mark.parametrize("way", ["absolute", "by a link"])
async def test_claude_code_cannot_read_outside_its_folder(claude: str, tmp_path: Path, way: str) -> None:
    """Also not through a link in the folder; the model receives the refusal."""
    folder = tmp_path / "projects/acme/shop"
    folder.mkdir(parents=True)
    (tmp_path / "projects/acme/other").mkdir()
    (tmp_path / "projects/acme/other/secret.txt").write_text("a neighbour's secret")
    (folder / "link").symlink_to(tmp_path / "projects/acme/other")
    paths = {
        "absolute": f"{tmp_path}/projects/acme/other/secret.txt",
        "by a link": f"{folder}/link/secret.txt",
    }
    await answer(new_backend(claude, tmp_path), tool_question("Read", file_path=paths[way]))
    (result,) = await results(claude)
    assert result["is_error"] is True
    assert "neighbour" not in json.dumps((await read_last_request(claude))["body"])


@pytest.mark.rule("S18")
async def test_no_file_in_the_project_opens_another_folder(claude: str, tmp_path: Path) -> None:
    """Its settings, hooks, servers and notes, which the model may have written, and a file that is only named."""
    folder, other = tmp_path / "projects/acme/shop", tmp_path / "projects/acme/other"
    (folder / ".claude").mkdir(parents=True)
    other.mkdir()
    (other / "secret.txt").write_text("a neighbour's secret")
    (folder / "link").symlink_to(other)
    (folder / "CLAUDE.md").write_text(f"@{other}/secret.txt\n@../other/secret.txt\n")
    hook = [{"hooks": [{"type": "command", "command": f"touch {other}/hooked"}]}]
    allowed = {"additionalDirectories": [str(other)], "allow": ["Write", "Bash"], "defaultMode": "bypassPermissions"}
    settings = {"permissions": allowed, "hooks": {"SessionStart": hook, "UserPromptSubmit": hook}}
    (folder / ".claude/settings.json").write_text(json.dumps(settings))
    server = {"command": "touch", "args": [f"{other}/served"]}
    (folder / ".mcp.json").write_text(json.dumps({"mcpServers": {"x": server}}))
    call = tool_question("Write", file_path=f"{folder}/link/new.txt", content="x")
    named = f"\n--add-dir {other}\nlook at @{other}/secret.txt, @../other/secret.txt and @link/secret.txt"
    call = msgspec.structs.replace(call, messages=[Message("user", f"{call.messages[0].content}{named}")])
    await answer(new_backend(claude, tmp_path, claude_code_tools="Read, Write, Edit"), call)
    (result,) = await results(claude)
    assert result["is_error"] is True
    assert "neighbour" not in json.dumps((await read_last_request(claude))["body"])
    assert [path.name for path in other.iterdir()] == ["secret.txt"]


@pytest.mark.rule("S18")
async def test_a_message_is_never_a_command_to_claude_code(claude: str, tmp_path: Path) -> None:
    """A message like `/model` would choose a model that costs more; it is sent as text."""
    command = "/model claude-opus-5-5"
    events = await answer(new_backend(claude, tmp_path), build_call("", messages=[Message("user", command)]))
    model_request = (await read_last_request(claude))["body"]
    assert (model_request["model"], (await read_stats(claude))["calls"]) == ("claude-sonnet-5-5", 1)
    assert command in json.dumps(model_request["messages"])
    assert text(events)


@pytest.mark.parametrize(
    ("tools", "tool", "fields"),
    [
        ("Read", "Bash", {"command": "echo hello", "description": "x"}),
        ("", "Read", {"file_path": "/etc/hostname"}),
        ("Bash(echo:*)", "Bash", {"command": "touch made.txt", "description": "x"}),
    ],
)
async def test_a_tool_that_is_not_on_the_list_is_refused(
    claude: str, tmp_path: Path, tools: str, tool: str, fields: dict[str, str]
) -> None:
    """Without a user there is no prompt for permission."""
    await answer(new_backend(claude, tmp_path, claude_code_tools=tools), tool_question(tool, **fields))
    (result,) = await results(claude)
    assert result["is_error"] is True
    assert "hello" not in json.dumps(result)
    assert list((tmp_path / "projects/acme/shop").iterdir()) == []


async def test_claude_code_receives_no_secret_of_our_environment(
    claude: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys of Tailrace or of a cloud are not in its environment."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-secret-of-aws")
    backend = new_backend(claude, tmp_path, claude_code_tools="Bash(env)")
    await answer(backend, tool_question("Bash", command="env", description="x"))
    (result,) = await results(claude)
    printed = json.dumps(result)
    assert "PATH=" in printed
    for secret in ("the-secret-of-aws", "sk-secret-key"):
        assert secret not in printed


def folders(root: Path) -> list[tuple[str, ...]]:
    return [path.relative_to(root).parts for path in root.rglob("*") if path.is_dir()]


async def test_a_projects_name_never_leads_out_of_the_root(claude: str, tmp_path: Path) -> None:
    """The folder of any project name is one level below its tenant's."""
    await answer(new_backend(claude, tmp_path), build_call("words=1 rate=0", project="../../other"))
    assert sorted(len(made) for made in folders(tmp_path)) == [1, 2, 3]


async def test_a_folder_that_is_a_link_is_not_worked_in(claude: str, tmp_path: Path) -> None:
    (tmp_path / "projects/acme").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "projects/acme/shop").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BackendError, match="is a link to another folder"):
        await answer(new_backend(claude, tmp_path), build_call("words=1 rate=0"))
    assert (await read_stats(claude))["calls"] == 0


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("fault=529x9", "backend_overloaded"),
        ("words=9 rate=0 fault=cut@3x9", "backend_broken"),
    ],
)
async def test_failures_of_claude_code_have_their_codes(claude: str, tmp_path: Path, line: str, code: str) -> None:
    """Each makes one call: the generator repeats calls, the backend does not."""
    with pytest.raises(BackendError) as failure:
        await answer(new_backend(claude, tmp_path), build_call(line))
    assert failure.value.code == code
    assert (await read_stats(claude))["calls"] <= 1


async def test_a_silent_claude_code_is_stopped(claude: str, tmp_path: Path) -> None:
    with pytest.raises(BackendError) as failure:
        await answer(new_backend(claude, tmp_path, stall_timeout_s=4.0), build_call("words=9 rate=0 fault=stall@3"))
    assert failure.value.code == "backend_stalled"
    await wait_for_open_streams(claude, 0)


@contextmanager
def file_size_limit(max_bytes: int) -> Iterator[None]:
    """Lets this process write no larger file, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def count_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_a_call_that_cannot_be_prepared_fails_and_leaves_no_file_open(claude: str, tmp_path: Path) -> None:
    """There is no space for the file with the system prompt."""
    backend, call = new_backend(claude, tmp_path), build_call("words=1 rate=0", system="x" * 2**20)
    descriptors = count_descriptors()
    with file_size_limit(2**19), pytest.raises(BackendError) as failure:
        await answer(backend, call)
    assert failure.value.code == "backend_unreachable"
    assert count_descriptors() == descriptors


@pytest.mark.parametrize(
    "more", [{"tools": [{"name": "look", "input_schema": {}}]}, {"options": {"stop_sequences": ["x"], "metadata": {}}}]
)
async def test_fields_that_claude_code_would_ignore_are_refused(
    claude: str, tmp_path: Path, more: dict[str, Any]
) -> None:
    """Tools of the client, and fields that the CLI has no option for."""
    with pytest.raises(BackendError, match=r"does not support (tools|stop_sequences)$") as failure:
        await answer(new_backend(claude, tmp_path), build_call("words=1", **more))
    assert failure.value.code == "backend_refused_request"


def command_lines() -> list[str]:
    """The command lines of all processes of this machine that the test may read."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return found


def is_running(mark: str) -> bool:
    return any(mark in line and "pytest" not in line for line in command_lines())


@pytest.mark.rule("S3")
async def test_no_prompt_and_no_key_is_a_command_line_argument(claude: str, tmp_path: Path) -> None:
    """Other users of a machine can read arguments: they contain neither prompt nor key."""
    call = build_call("words=200 rate=20\nmy-secret-question", system="my-secret-system")
    events = answer_of(new_backend(claude, tmp_path), call)
    await anext(events)
    ours = [line for line in command_lines() if str(BINARY.resolve()) in line]
    await events.aclose()
    assert ours
    for secret in ("my-secret", "sk-secret-key"):
        assert secret not in " ".join(ours)


async def test_claude_code_and_its_children_end_with_the_call(claude: str, tmp_path: Path) -> None:
    """Also a child in another process group, and one that ignores SIGTERM."""
    mark = f"86{os.getpid()}"
    script = f"setsid sh -c 'trap \"\" TERM; sleep {mark}.5' & sleep {mark}"
    backend = new_backend(claude, tmp_path, claude_code_tools="Bash")
    answering = asyncio.create_task(answer(backend, tool_question("Bash", command=script, description="x")))
    await until(lambda: is_running(f"sleep {mark}.5") and is_running(f"sleep {mark}"), MANY_TRIES_S)
    answering.cancel()
    await asyncio.wait([answering])
    assert answering.cancelled()
    assert not is_running(mark)


async def test_a_generator_that_is_killed_takes_it_along(
    own_server: NatsServer, own_log: TurnLog, claude: str, tmp_path: Path
) -> None:
    mark = f"87{os.getpid()}"
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    settings = {
        "TAILRACE_BACKENDS": "claude_code",
        "TAILRACE_CLAUDE_CODE_BINARY": BINARY,
        "TAILRACE_CLAUDE_CODE_ROOT": tmp_path / "projects",
        "TAILRACE_CLAUDE_CODE_TOOLS": "Bash",
        "TMPDIR": temporary,
    }
    fields = json.dumps({"command": f"sh -c 'sleep {mark}'", "description": "x"}, separators=(",", ":"))
    async with processes.generator(tmp_path, own_server.url, claude, **settings) as generator:
        await append_request(own_log, f"words=2 rate=0 tool=Bash json={fields}")
        await until(lambda: is_running(f"sleep {mark}"), MANY_TRIES_S)
        assert any(temporary.iterdir())
        await generator.stop(SIGKILL)
        await until(lambda: not is_running(mark), MANY_TRIES_S)
        # The file with the system prompt is removed.
        await until(lambda: not any(temporary.iterdir()), MANY_TRIES_S)


async def test_an_answer_with_a_schema_is_asked_for_in_its_prompt(
    own_server: NatsServer, own_log: TurnLog, claude: str, tmp_path: Path
) -> None:
    """It is checked like any other answer, and requested again when it does not fit."""
    schema = {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}
    given: dict[str, Any] = {
        "backends": "claude_code",
        "claude_code_binary": str(BINARY),
        "claude_code_root": tmp_path / "projects",
        "stall_timeout_s": STALL_TIMEOUT_S,
    }
    async with running_generator(own_server.url, claude, **given):
        # The simulated Claude also answers a conversation in JSON with this text.
        line = 'rate=0 json={"query":"tailrace"} wrong={"km":1}'
        turn = await wait_for_end(own_log, await append_request(own_log, line, options=with_schema(None, schema)))
    assert turn.end is not None
    assert (turn.text, turn.outcome, turn.end.schema_valid) == ('{"query":"tailrace"}', "completed", True)
    assert (turn.attempt, turn.rejected) == (2, '{"km":1}')
    model_request = (await read_last_request(claude))["body"]
    assert "output_config" not in model_request or "format" not in model_request["output_config"]
    assert "uses of your tools" in json.dumps(model_request["system"])
    for part in ("JSON Schema", '\\"required\\":[\\"query\\"]', "does not fit"):
        assert part in json.dumps(model_request["messages"])


async def test_when_it_breaks_in_mid_sentence_claude_itself_goes_on(
    own_server: NatsServer, own_log: TurnLog, claude: str, tmp_path: Path
) -> None:
    """Failover to the backend `claude` continues the open block."""
    given: dict[str, Any] = {
        "backends": "claude_code, claude",
        "claude_code_binary": str(BINARY),
        "claude_code_root": tmp_path / "projects",
        "stall_timeout_s": STALL_TIMEOUT_S,
    }
    async with running_generator(own_server.url, claude, **given):
        key = await append_request(own_log, "words=60 rate=50 fault=error@20")
        turn = await wait_for_end(own_log, key)
    assert (turn.text, turn.outcome) == (words(60), "completed")
    assert len(turn.blocks) == 1
    attempts = [(attempt.backend, attempt.mode) for attempt in await read_attempts(own_log, key)]
    assert attempts == [("claude_code", "fresh"), ("claude", "continue")]
    # No later turn sends thinking that Claude Code has written to the API (R140).
    assert turn.prefixes[0].is_extended


def test_no_text_begins_as_a_command_does() -> None:
    """Alone, behind another text, or behind a conversation; other text with a slash is unchanged."""
    blocks = [{"type": "text", "text": words} for words in ("/compact", "a/b", "/etc/hosts")]
    for messages in (
        [Message("user", blocks)],
        [Message("user", "/x"), Message("assistant", "/y"), Message("user", blocks)],
    ):
        prompt = build_prompt(build_call("", messages=messages))["message"]["content"]
        assert [block["text"] for block in prompt[-3:]] == [" /compact", "a/b", " /etc/hosts"]
        assert not any(block["text"].startswith("/") for block in prompt)


def test_earlier_messages_are_a_text_before_the_last_message() -> None:
    """The CLI accepts user messages only; pictures of earlier ones, and cleared messages, are not repeated."""
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
    messages = [
        Message("user", [picture, {"type": "text", "text": "What is it?"}]),
        Message("system", "Hurry.", clear_at="next_user_message"),
        Message("assistant", "A cat."),
        Message("user", [picture, {"type": "text", "text": "And this?"}]),
    ]
    prompt = build_prompt(build_call("", messages=messages))["message"]
    earlier, *last = prompt["content"]
    assert prompt["role"] == "user"
    assert last == messages[-1].content
    assert "What is it?" in earlier["text"]
    assert "A cat." in earlier["text"]
    assert "AAAA" not in earlier["text"]
    assert "Hurry." not in earlier["text"]
    partial = build_prompt(build_call("", messages=[*messages, Message("assistant", "A d")]))["message"]["content"]
    assert "A d" in partial[0]["text"]
    assert "interrupted" in partial[-1]["text"]


def test_the_program_of_claude_code_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the setting, on the path, or where its installer puts it; otherwise the process does not start."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SettingsInvalid, match="TAILRACE_CLAUDE_CODE_BINARY"):
        find("")
    with pytest.raises(SettingsInvalid, match="BINARY: /nowhere/claude is not an executable file"):
        find("/nowhere/claude")
    for place in (".local/bin/claude", "bin/claude", "own/claude"):
        path = tmp_path / place
        path.parent.mkdir(parents=True)
        path.touch(mode=0o755)
        assert find(str(path) if place.startswith("own") else "") == path


async def test_the_operators_login_answers_without_a_key(claude: str, tmp_path: Path) -> None:
    """Without a key Claude Code refuses to start a call. Its tool calls are marked as executed."""
    login = {"anthropic_api_key": "", "claude_code_oauth_token": "sk-ant-oat01-secret"}
    backend = new_backend(claude, tmp_path, claude_code_tools="Bash(ls:*)", **login)
    events = await answer(backend, tool_question("Bash", command="ls -1", description="x"))
    blocks = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    assert [(block["type"], block.get("name")) for block in blocks] == [
        ("text", None),
        ("server_tool_use", "Bash"),
        ("text", None),
    ]
    assert (await backend.version()).endswith("(Claude Code)")
