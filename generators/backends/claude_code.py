"""Claude Code's CLI, a process for each call: it works with its own tools, in a folder of the turn's project.

What it may do is an allow-list, and it asks nobody for more: whatever is not listed is refused (`--restricted` and
`--permission-prompts none` are its own words for that). It is told nothing of our environment, keeps nothing outside
its folder, and is ended with its call, and all its children with it (leash.py). Nothing that a user has said is an
argument: those can be read by all users of a machine.
"""

import asyncio
import hashlib
import os
import re
import shutil
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from tailrace.generators.backends import Call, process_reaper
from tailrace.generators.backends.claude_code_output import ClaudeCodeOutput
from tailrace.generators.backends.event_order import EventOrder
from tailrace.generators.settings import Settings, require_sound
from tailrace.generators.structured_output import in_prompt, with_told
from tailrace.proto.entries import Message
from tailrace.proto.errors import BackendError, SettingsInvalid
from tailrace.proto.ids import is_token
from tailrace.proto.schema import schema_of

LINE_BYTES_MAX = 16 * 2**20  # a line may hold a whole tool's result
USUAL_PLACES = ("~/.local/bin/claude", "~/.claude/local/claude", "/usr/local/bin/claude", "/opt/homebrew/bin/claude")
PATH = "/usr/local/bin:/usr/bin:/bin"
# Options that say how to do the same: Claude Code has its own mind about these. Others would be disobeyed in silence.
HINTS = frozenset({"cache_control", "context_management", "metadata", "service_tier", "thinking"})
# Beyond the leash's own grace nothing is waited for.
END_S_MAX = process_reaper.GRACE_S + 3.0
EARLIER = "This is the conversation so far, as JSON. Go on with the message that follows it."
SILENT = "That includes what you say before and between uses of your tools: there, say nothing."
GO_ON = "Your last message above was interrupted. Write only what comes after it, from exactly that point."


class ClaudeCode:
    def __init__(self, binary: Path, settings: Settings) -> None:
        self._binary = binary
        self._settings = settings
        self._root = settings.claude_code_root.resolve()

    def model_id(self, model: str) -> str:
        """It knows them by Anthropic's own names."""
        return model

    async def answer(self, call: Call) -> AsyncGenerator[bytes, None]:
        """See Backend.answer."""
        call = by_prompt(call)
        refuse_unable(call)
        lines, grammar = ClaudeCodeOutput(), EventOrder()
        async with self._running(call) as process:
            while not lines.is_over:
                for kind, event in lines.read(await self._line(process, lines)):
                    grammar.require(kind, event)
                    yield event

    async def close(self) -> None: ...

    async def _line(self, process: Process, lines: ClaudeCodeOutput) -> bytes:
        assert process.stdout is not None  # noqa: S101
        try:
            # While a tool works, only the turn's deadline counts.
            async with asyncio.timeout(self._settings.stall_timeout_s if lines.awaits_model else None):
                line = await process.stdout.readline()
        except TimeoutError as error:
            raise BackendError("backend_stalled", "Claude Code fell silent") from error
        except ValueError as error:
            raise BackendError("backend_broken", "Claude Code printed a line that is too long") from error
        if not line.endswith(b"\n"):
            raise BackendError("backend_broken", "Claude Code ended before it came to a result")
        return line

    @asynccontextmanager
    async def _running(self, call: Call) -> AsyncGenerator[Process, None]:
        """The process, asked; ended with the block."""
        with tempfile.TemporaryDirectory(prefix="tailrace-claude-code-") as made:
            home = Path(made)
            folder = self._folder(call, home)
            key = readable(self._settings.anthropic_api_key)
            arguments = process_reaper.command([str(self._binary), *self._arguments(call, home)], key, home)
            try:
                process = await asyncio.create_subprocess_exec(
                    *arguments,
                    cwd=folder,
                    env=self._environ(call, home, key),
                    stdin=PIPE,
                    stdout=PIPE,
                    stderr=DEVNULL,
                    limit=LINE_BYTES_MAX,
                    pass_fds=(key,),
                    start_new_session=True,
                )
            except OSError as error:
                raise BackendError("backend_unreachable", "Claude Code could not be started") from error
            finally:
                os.close(key)
            try:
                await tell(process, call)
                yield process
            finally:
                await asyncio.shield(end(process))

    def _folder(self, call: Call, home: Path) -> Path:
        """Where it works: its project's folder, or one that goes with the call. Raises BackendError."""
        if call.project is None:
            folder = home / "work"
            folder.mkdir()
            return folder
        folder = self._root / name_of(call.tenant) / name_of(call.project)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise BackendError("backend_failed", "the project's working folder could not be made") from error
        if folder.resolve() != folder:
            # A link that leads out of the root would let one project into another's folder, or anywhere.
            raise BackendError("backend_failed", "the project's working folder leads elsewhere")
        return folder

    def _arguments(self, call: Call, home: Path) -> list[str]:
        allowed = [rule.strip() for rule in re.split(r",(?![^(]*\))", self._settings.claude_code_tools) if rule.strip()]
        tools = dict.fromkeys(rule.partition("(")[0] for rule in allowed)
        arguments = ["-p", "--input-format", "stream-json", "--output-format", "stream-json", "--verbose"]
        arguments += ["--include-partial-messages", "--no-session-persistence", "--model", call.model]
        arguments += ["--restricted", "--strict-mcp-config", "--permission-prompts", "none"]
        # A folder's own commands, too, are not for who works in it; its question is none anyway.
        arguments += ["--disable-slash-commands", "--tools", ",".join(tools)]
        if allowed:
            arguments += ["--allowedTools", ",".join(allowed)]
        if call.system:
            told = home / "system.txt"
            told.write_text(text_of(call.system))
            arguments += ["--append-system-prompt-file", str(told)]
        return arguments

    def _environ(self, call: Call, home: Path, key: int) -> dict[str, str]:
        """All that it gets: our own environment has secrets of others. What it runs itself inherits no key."""
        return {
            "PATH": PATH,
            "HOME": str(home),
            "TMPDIR": str(home),
            "CLAUDE_CODE_TMPDIR": str(home),
            "LANG": "C.UTF-8",
            "CLAUDE_CODE_API_KEY_FILE_DESCRIPTOR": str(key),
            "ANTHROPIC_BASE_URL": self._settings.anthropic_base_url,
            "CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(call.max_tokens),
            # Repeating is retry.py's business, where it is counted.
            "CLAUDE_CODE_MAX_RETRIES": "0",
            "CLAUDE_CODE_DISABLE_NONSTREAMING_FALLBACK": "1",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        }


def readable(text: str) -> int:
    """A descriptor that `text` can be read from, once; it fits a pipe."""
    read, write = os.pipe()
    os.write(write, text.encode())
    os.close(write)
    return read


async def tell(process: Process, call: Call) -> None:
    """The question, as the one line that it reads. Who is gone already is found out when it is listened to."""
    assert process.stdin is not None  # noqa: S101
    with suppress(ConnectionError):
        process.stdin.write(msgspec.json.encode(question(call)) + b"\n")
        await process.stdin.drain()
    process.stdin.close()


async def end(process: Process) -> None:
    """Ends it and all below it; returns when it is gone."""
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


def question(call: Call) -> dict[str, Any]:
    """The conversation as one message of the user's: Claude Code takes no others.

    What was said before stands in front of the last message as JSON; of pictures and documents there, only that they
    were there.
    """
    *earlier, last = call.messages
    if last.role != "user":
        earlier, last = call.messages, Message("user", GO_ON)
    before = [{"type": "text", "text": f"{EARLIER}\n{msgspec.json.encode([told(m) for m in earlier]).decode()}"}]
    content = [{"type": "text", "text": last.content}] if isinstance(last.content, str) else last.content
    content = [*(before if earlier else []), *map(uncommanding, content)]
    return {"type": "user", "message": {"role": "user", "content": content}}


def uncommanding(block: dict[str, Any]) -> dict[str, Any]:
    """`block`, which is no command: `/model` at its beginning would be one, and would choose the model."""
    match block:
        case {"type": "text", "text": str(text)} if text.startswith("/"):
            return block | {"text": f" {text}"}
        case _:
            return block


def by_prompt(call: Call) -> Call:
    """`call`, which asks for an answer that fits a schema in the only way that Claude Code can be asked for one."""
    if schema_of(call.options) is None:
        return call
    call = in_prompt(call)
    return msgspec.structs.replace(call, system=with_told(call.system, SILENT))


def told(message: Message) -> Message:
    return Message(message.role, message.content if isinstance(message.content, str) else seen(message.content))


def seen(content: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"type": block["type"]} if block.get("type") in ("image", "document") else block for block in content]


def text_of(system: str | list[dict[str, Any]]) -> str:
    return system if isinstance(system, str) else "\n\n".join(str(block.get("text", "")) for block in system)


def name_of(project: str) -> str:
    """A folder's name that leads nowhere else: a token as it is, anything else by its hash."""
    return project if is_token(project) else f"={hashlib.sha256(project.encode()).hexdigest()[:40]}"


def refuse_unable(call: Call) -> None:
    """Raises BackendError for what Claude Code would pass over in silence."""
    unable = sorted(set(call.options or {}) - HINTS)
    if call.tools:
        unable.append("tools")
    if unable:
        raise BackendError("backend_refused_request", f"Claude Code takes no {', '.join(unable)}")


def backend(settings: Settings) -> ClaudeCode:
    """Raises SettingsInvalid without a key or a program."""
    if not settings.anthropic_api_key:
        raise SettingsInvalid("ANTHROPIC_API_KEY is not set: the backend claude_code needs a key")
    require_sound(settings)
    if settings.claude_code_root.exists() and not settings.claude_code_root.is_dir():
        raise SettingsInvalid(f"TAILRACE_CLAUDE_CODE_ROOT: {settings.claude_code_root} is a file; expected a folder")
    return ClaudeCode(find(settings.claude_code_binary), settings)


def find(given: str) -> Path:
    """The program: where the setting says, or else on the path, or in a usual place. Raises SettingsInvalid."""
    places = [given] if given else [shutil.which("claude") or "", *USUAL_PLACES]
    for place in filter(None, places):
        found = shutil.which(Path(place).expanduser())
        if found is not None:
            return Path(found).resolve()
    where = given or "on the path, nor in the usual places"
    raise SettingsInvalid(f"TAILRACE_CLAUDE_CODE_BINARY: Claude Code is not {where}")
