"""The backend `claude_code`: runs Claude Code's CLI with its own tools in a folder of the turn's project.

Each call has one process. Its tools are an allow-list; it refuses all others without a prompt (`--restricted`,
`--permission-prompts none`). It gets nothing of this process's environment, stores nothing outside its folder, and ends
with its call, together with all its children (process_reaper.py). Text of users is never passed as an argument, because
all users of a machine can read arguments.
"""

import asyncio
import os
import re
import shutil
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncGenerator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from tailrace.features.claude_code import process_reaper
from tailrace.features.claude_code.generator import ClaudeCodeSettings
from tailrace.features.claude_code.output import ClaudeCodeOutput
from tailrace.features.common.schema_prompt import append_to_system, move_schema_to_prompt
from tailrace.generators.backends import Call
from tailrace.generators.backends.event_order import EventOrder
from tailrace.generators.backends.model_event import ModelEvent, Put, put_each
from tailrace.generators.settings import Settings, require_key, require_sound
from tailrace.proto.entries import Message
from tailrace.proto.errors import BackendError, SettingsInvalid
from tailrace.proto.ids import folder_name
from tailrace.proto.runtime.settings import select
from tailrace.proto.schema import schema_of
from tailrace.proto.system_messages import without_cleared

LINE_BYTES_MAX = 16 * 2**20  # a line may contain the complete result of a tool
USUAL_PATHS = ("~/.local/bin/claude", "~/.claude/local/claude", "/usr/local/bin/claude", "/opt/homebrew/bin/claude")
PATH = "/usr/local/bin:/usr/bin:/bin"
# Options that Claude Code decides itself without changing what the answer is. It would ignore any other option.
HINTS = frozenset({"cache_control", "context_management", "metadata", "service_tier", "thinking"})
VERSION_S_MAX = 30.0
VERSION_CHARS_MAX = 100
# The reaper's own grace period, plus some time for it to end.
END_S_MAX = process_reaper.GRACE_S + 3.0
EARLIER_PROMPT = "This is the conversation so far, as JSON. Go on with the message that follows it."
SILENT_PROMPT = "That includes what you say before and between uses of your tools: there, say nothing."
CONTINUE_PROMPT = "Your last message above was interrupted. Write only what comes after it, from exactly that point."


class ClaudeCode:
    """The backend `claude_code`."""

    provider = "anthropic"

    def __init__(self, binary: Path, settings: Settings, own: ClaudeCodeSettings) -> None:
        self._binary = binary
        self._settings = settings
        self._own = own
        self._root = own.claude_code_root.resolve()

    def model_id(self, model: str) -> str:
        """See Backend.model_id."""
        return model

    async def stream(self, call: Call, put: Put) -> None:
        """See Backend.stream."""
        await put_each(put, self._answer(call))

    async def _answer(self, call: Call) -> AsyncGenerator[ModelEvent, None]:
        call = ask_schema_in_prompt(call)
        refuse_unsupported(call)
        output, order = ClaudeCodeOutput(), EventOrder()
        async with self._run_process(call) as process:
            while not output.is_over:
                failure = None
                try:
                    events = output.read(await self._read_line(process, output))
                except BackendError as error:
                    # The last call may have ended: it is paid for.
                    failure, events = error, output.report_usage()
                for event in events:
                    for one in order.accept(event):
                        yield one
                if failure is not None:
                    raise failure

    async def close(self) -> None: ...

    async def facts(self) -> dict[str, Any]:
        """See FactsReporter.facts."""
        return {"claude_version": await self.version()}

    async def version(self) -> str:
        """Returns the version that the program prints; an empty text if it prints nothing in time."""
        try:
            process = await asyncio.create_subprocess_exec(
                str(self._binary), "--version", env={"PATH": PATH}, stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL
            )
        except OSError:
            return ""
        try:
            async with asyncio.timeout(VERSION_S_MAX):
                printed, _ = await process.communicate()
        except TimeoutError:
            return ""
        finally:
            await end(process)
        return printed.decode(errors="replace").strip()[:VERSION_CHARS_MAX]

    async def _read_line(self, process: Process, output: ClaudeCodeOutput) -> bytes:
        assert process.stdout is not None  # noqa: S101
        try:
            # While a tool runs, only the deadline of the turn limits it.
            async with asyncio.timeout(self._settings.stall_timeout_s if output.awaits_model else None):
                line = await process.stdout.readline()
        except TimeoutError as error:
            raise BackendError("backend_stalled", "Claude Code printed nothing for too long") from error
        except ValueError as error:
            raise BackendError("backend_event_too_large", "Claude Code printed a line that is too long") from error
        if not line.endswith(b"\n"):
            raise BackendError("backend_broken", "Claude Code ended without a result")
        return line

    @asynccontextmanager
    async def _run_process(self, call: Call) -> AsyncGenerator[Process, None]:
        """Starts the process and sends it the prompt; ends it with the context."""
        with ExitStack() as stack:
            try:
                made = stack.enter_context(tempfile.TemporaryDirectory(prefix="tailrace-claude-code-"))
                process = await self._start(call, Path(made))
            except OSError as error:
                raise BackendError("backend_unreachable", "Claude Code could not be started") from error
            try:
                await send_prompt(process, call)
                yield process
            finally:
                await asyncio.shield(end(process))

    async def _start(self, call: Call, home: Path) -> Process:
        """Starts the process. Raises OSError, BackendError."""
        folder, arguments = self._folder(call, home), self._arguments(call, home)
        # Opened after everything else that may fail: an open pipe must be closed again.
        key = open_pipe(self._settings.anthropic_api_key or self._own.claude_code_oauth_token)
        try:
            return await asyncio.create_subprocess_exec(
                *process_reaper.command([str(self._binary), *arguments], key, home),
                cwd=folder,
                env=self._environ(call, home, key),
                stdin=PIPE,
                stdout=PIPE,
                stderr=DEVNULL,
                limit=LINE_BYTES_MAX,
                pass_fds=(key,),
                start_new_session=True,
            )
        finally:
            os.close(key)

    def _folder(self, call: Call, home: Path) -> Path:
        """Returns the folder of the project, or a temporary one without a project. Raises BackendError."""
        if call.project is None:
            folder = home / "work"
            folder.mkdir()
            return folder
        folder = self._root / folder_name(call.tenant) / folder_name(call.project)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise BackendError("backend_failed", "the project's working folder could not be created") from error
        if folder.resolve() != folder:
            # A link could give one project access to the folder of another, or to any folder.
            raise BackendError("backend_failed", "the project's working folder is a link to another folder")
        return folder

    def _arguments(self, call: Call, home: Path) -> list[str]:
        allowed = [rule.strip() for rule in re.split(r",(?![^(]*\))", self._own.claude_code_tools) if rule.strip()]
        tools = dict.fromkeys(rule.partition("(")[0] for rule in allowed)
        arguments = ["-p", "--input-format", "stream-json", "--output-format", "stream-json", "--verbose"]
        arguments += ["--include-partial-messages", "--no-session-persistence", "--model", call.model]
        arguments += ["--restricted", "--strict-mcp-config", "--permission-prompts", "none"]
        # A folder may define slash commands; a prompt must not run them.
        arguments += ["--disable-slash-commands", "--tools", ",".join(tools)]
        if allowed:
            arguments += ["--allowedTools", ",".join(allowed)]
        if call.system:
            system = home / "system.txt"
            system.write_text(text_of(call.system), encoding="utf-8")
            arguments += ["--append-system-prompt-file", str(system)]
        return arguments

    def _environ(self, call: Call, home: Path, key: int) -> dict[str, str]:
        """Returns an environment without this process's secrets. Claude Code's children do not inherit the key."""
        kind = "API_KEY" if self._settings.anthropic_api_key else "OAUTH_TOKEN"
        return {
            "PATH": PATH,
            "HOME": str(home),
            "TMPDIR": str(home),
            "CLAUDE_CODE_TMPDIR": str(home),
            "LANG": "C.UTF-8",
            f"CLAUDE_CODE_{kind}_FILE_DESCRIPTOR": str(key),
            "ANTHROPIC_BASE_URL": self._settings.anthropic_base_url,
            "CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(call.max_tokens),
            # retry.py repeats calls, and counts them.
            "CLAUDE_CODE_MAX_RETRIES": "0",
            "CLAUDE_CODE_DISABLE_NONSTREAMING_FALLBACK": "1",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        }


def open_pipe(text: str) -> int:
    """Returns a file descriptor from which `text` can be read once. A key fits in a pipe's buffer."""
    read, write = os.pipe()
    os.write(write, text.encode())
    os.close(write)
    return read


async def send_prompt(process: Process, call: Call) -> None:
    """Writes the prompt, one line, to the process's input. If the process has ended, its output shows that."""
    assert process.stdin is not None  # noqa: S101
    with suppress(ConnectionError):
        process.stdin.write(msgspec.json.encode(build_prompt(call)) + b"\n")
        await process.stdin.drain()
    process.stdin.close()


async def end(process: Process) -> None:
    """Ends the process and all its children; returns when they are gone."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.terminate()
    try:
        async with asyncio.timeout(END_S_MAX):
            await process.wait()
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def build_prompt(call: Call) -> dict[str, Any]:
    """Returns the conversation as one user message, the only kind of input that Claude Code accepts.

    Earlier messages come before the last one as JSON, with pictures and documents reduced to their type.
    """
    *earlier, last = call.messages
    if last.role != "user":
        earlier, last = call.messages, Message("user", CONTINUE_PROMPT)
    earlier = without_cleared([last], earlier)
    history = msgspec.json.encode([without_media(message) for message in earlier]).decode()
    before = [{"type": "text", "text": f"{EARLIER_PROMPT}\n{history}"}]
    content = [{"type": "text", "text": last.content}] if isinstance(last.content, str) else last.content
    content = [*(before if earlier else []), *map(escape_command, content)]
    return {"type": "user", "message": {"role": "user", "content": content}}


def escape_command(block: dict[str, Any]) -> dict[str, Any]:
    """Returns `block` so that Claude Code takes it as text: a leading `/model` would be a command."""
    match block:
        case {"type": "text", "text": str(text)} if text.startswith("/"):
            return block | {"text": f" {text}"}
        case _:
            return block


def ask_schema_in_prompt(call: Call) -> Call:
    """Returns `call` with its schema in the prompt: Claude Code has no structured outputs."""
    if schema_of(call.options) is None:
        return call
    call = move_schema_to_prompt(call)
    return msgspec.structs.replace(call, system=append_to_system(call.system, SILENT_PROMPT))


def without_media(message: Message) -> Message:
    """Returns the message with only the type of each image and document, without its content."""
    if isinstance(message.content, str):
        return message
    content = [{"type": b["type"]} if b.get("type") in ("image", "document") else b for b in message.content]
    return Message(message.role, content)


def text_of(system: str | list[dict[str, Any]]) -> str:
    """Returns the text of a system prompt. Its blocks are separated by an empty line."""
    return system if isinstance(system, str) else "\n\n".join(str(block.get("text", "")) for block in system)


def refuse_unsupported(call: Call) -> None:
    """Raises BackendError for fields that Claude Code would ignore."""
    unsupported = sorted(set(call.options or {}) - HINTS)
    if call.tools:
        unsupported.append("tools")
    if unsupported:
        raise BackendError("backend_refused_request", f"Claude Code does not support {', '.join(unsupported)}")


def backend(settings: Settings) -> ClaudeCode:
    """Opens the backend. Raises SettingsInvalid without a key or token, or without the program."""
    own = select(settings, ClaudeCodeSettings)
    if not (settings.anthropic_api_key or own.claude_code_oauth_token):
        raise SettingsInvalid(
            "ANTHROPIC_API_KEY is not set: the backend claude_code needs a key, or CLAUDE_CODE_OAUTH_TOKEN"
        )
    require_sound(settings)
    require_key("CLAUDE_CODE_OAUTH_TOKEN", own.claude_code_oauth_token)
    if own.claude_code_root.exists() and not own.claude_code_root.is_dir():
        raise SettingsInvalid(f"TAILRACE_CLAUDE_CODE_ROOT: {own.claude_code_root} is a file; expected a folder")
    return ClaudeCode(find(own.claude_code_binary), settings, own)


def find(given: str) -> Path:
    """Returns the program's path: the given one, or one on PATH or in USUAL_PATHS. Raises SettingsInvalid."""
    candidates = [given] if given else [shutil.which("claude") or "", *USUAL_PATHS]
    for candidate in filter(None, candidates):
        found = shutil.which(Path(candidate).expanduser())
        if found is not None:
            return Path(found).resolve()
    if given:
        raise SettingsInvalid(f"TAILRACE_CLAUDE_CODE_BINARY: {given} is not an executable file")
    raise SettingsInvalid(
        "TAILRACE_CLAUDE_CODE_BINARY: Claude Code is not on PATH, nor in its usual folders; install it or set its path"
    )
