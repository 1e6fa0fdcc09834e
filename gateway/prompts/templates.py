"""The prompts that the operator has written: templates in a folder, by name. A process of its own fills them.

They are read once, at the start. A name is looked up among those that were found there, and never becomes a path.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from tailrace.gateway.turns.request_body import ASKED_LEVELS_MAX, Filled, Params
from tailrace.proto.depth import is_deeper
from tailrace.proto.errors import Refused, SandboxBusy, SandboxFailed, SettingsInvalid
from tailrace.proto.ids import Tenant
from tailrace.proto.runtime.sandbox import Sandbox

PROGRAM = Path(__file__).with_name("worker.py")
# What it may compute is in the program, and less: a machine that is busy makes no template wrong.
FILL_S_MAX = 10.0
SUFFIX = ".j2"
NAME = re.compile(r"[a-z0-9_-]{1,64}")
SOURCE_CHARS_MAX = 65_536

# One process fills so many: to start one takes longer than most templates.
FILLED_AT_ONCE = 200

A = TypeVar("A", bound=msgspec.Struct)
P = TypeVar("P", bound=Params)


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """A template as its users see it. `variables` are the names that it takes, `makes` what comes of them."""

    name: str
    description: str
    variables: list[str]
    makes: list[Literal["system", "message"]]


class _Described(msgspec.Struct, frozen=True, kw_only=True):
    description: str = ""
    variables: list[str] = []
    makes: list[Literal["system", "message"]] = []
    error: str | None = None


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """What a prompt says with its variables."""

    system: str | None = None
    message: str | None = None
    error: str | None = None


class Prompts:
    """Those of one folder; none until they are read."""

    def __init__(self, folder: str, *, wait_s: float) -> None:
        """`wait_s`: how long one that is to be filled waits for those of others."""
        self._folder = folder
        self._child = Sandbox(PROGRAM, wait_s=wait_s)
        self._prompts: dict[str, tuple[Prompt, str]] = {}

    async def read(self) -> None:
        """Reads the folder; raises SettingsInvalid with what is wrong with which file."""
        if not self._folder:
            return
        sources = sources_in(Path(self._folder))
        try:
            described = await self._said([*sources.values()], None, _Described, "")
        except SandboxFailed as error:
            raise SettingsInvalid(f"TAILRACE_PROMPTS: {self._folder} cannot be read: {error}") from error
        for (file, source), told in zip(sources.items(), described, strict=True):
            if told.error is not None:
                raise SettingsInvalid(f"TAILRACE_PROMPTS: {file}: {told.error}")
            about = {field: getattr(told, field) for field in ("description", "variables", "makes")}
            self._prompts[file.stem] = (Prompt(name=file.stem, **about), source)

    def all(self) -> list[Prompt]:
        """By name."""
        return [prompt for prompt, _ in self._prompts.values()]

    def named(self, name: str) -> Prompt:
        """Raises Refused."""
        prompt, _ = self._found(name)
        return prompt

    async def filled(self, ask: P, whose: Tenant) -> P:
        """`ask`, saying what its prompt makes of its variables. Raises Refused."""
        (made,) = await self.all_filled([ask], whose)
        if isinstance(made, Refused):
            raise made
        return made

    async def all_filled(self, asks: Sequence[P], whose: Tenant) -> list[P | Refused]:
        """Each of `asks` as it is with its prompt filled, if it names one; or why that cannot be. Raises Refused."""
        made: list[P | Refused] = list(asks)
        wanted: list[tuple[int, Filled]] = []
        for number, ask in enumerate(asks):
            if ask.prompt is not None:
                try:
                    self._require_fit(ask, ask.prompt)
                except Refused as refused:
                    made[number] = refused
                else:
                    wanted.append((number, ask.prompt))
        for first in range(0, len(wanted), FILLED_AT_ONCE):
            some = wanted[first : first + FILLED_AT_ONCE]
            texts = await self._texts([prompt for _, prompt in some], whose)
            for (number, _), text in zip(some, texts, strict=True):
                made[number] = text if isinstance(text, Refused) else said(asks[number], text)
        return made

    def _require_fit(self, ask: Params, wanted: Filled) -> None:
        """Raises Refused for names that the prompt does not have, and for what it says itself."""
        prompt, _ = self._found(wanted.name)
        if unknown := wanted.variables.keys() - set(prompt.variables):
            names = ", ".join(prompt.variables) or "none"
            raise Refused("prompt_invalid", f"`{prompt.name}` has no variable `{min(unknown)[:64]}`; there are {names}")
        if is_deeper(wanted.variables, ASKED_LEVELS_MAX):
            raise Refused("request_invalid", f"`variables` are nested more than {ASKED_LEVELS_MAX} levels deep")
        if "message" in prompt.makes and (ask.message is not None or ask.messages is not None):
            raise Refused("request_invalid", f"`{prompt.name}` makes the message: send no other")
        if "system" in prompt.makes and ask.system is not None:
            raise Refused("request_invalid", f"`{prompt.name}` makes the system prompt: send no other")

    async def _texts(self, wanted: Sequence[Filled], whose: Tenant) -> list["Made | Refused"]:
        """What comes of each, all in one process. Raises Refused when there was no room for one in time."""
        names = list(dict.fromkeys(prompt.name for prompt in wanted))
        sources = [self._found(name)[1] for name in names]
        fillings = [(names.index(prompt.name), prompt.variables) for prompt in wanted]
        try:
            made = await self._said(sources, fillings, Made, whose)
        except SandboxBusy as error:
            raise Refused("server_busy", f"`{names[0]}` was not filled: {error}. Send it again") from error
        except SandboxFailed as error:
            return [unfilled(prompt, error) for prompt in wanted]
        return [
            text if text.error is None else unfilled(prompt, text.error)
            for prompt, text in zip(wanted, made, strict=True)
        ]

    def _found(self, name: str) -> tuple[Prompt, str]:
        if name not in self._prompts:
            raise Refused("prompt_not_found", "there is no such prompt: GET /v1/prompts lists them")
        return self._prompts[name]

    async def _said(
        self, sources: list[str], fillings: list[tuple[int, dict[str, Any]]] | None, kind: type[A], whose: str
    ) -> list[A]:
        asked = msgspec.json.encode({"sources": sources, "fillings": fillings})
        return msgspec.json.decode(await self._child.run(asked, FILL_S_MAX, whose), type=list[kind])  # type: ignore[valid-type]


def said(ask: P, text: Made) -> P:
    """`ask` with what its prompt says."""
    given = {name: it for name in ("system", "message") if (it := getattr(text, name)) is not None}
    return msgspec.structs.replace(ask, prompt=None, **given)


def unfilled(wanted: Filled, why: object) -> Refused:
    return Refused("prompt_invalid", f"`{wanted.name}` cannot be filled: {why}")


def sources_in(folder: Path) -> dict[Path, str]:
    """The templates of a folder; raises SettingsInvalid."""
    if not folder.is_dir():
        raise SettingsInvalid(f"TAILRACE_PROMPTS: there is no folder {folder}")
    return {file: source_of(file) for file in sorted(folder.glob(f"*{SUFFIX}"))}


def source_of(file: Path) -> str:
    """What a template says; raises SettingsInvalid for what none can be called, or is too long."""
    if NAME.fullmatch(file.stem) is None:
        raise SettingsInvalid(f"TAILRACE_PROMPTS: {file}: a prompt's name is 1 to 64 of a-z 0-9 _ -")
    try:
        source = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsInvalid(f"TAILRACE_PROMPTS: {file}: {error}") from error
    if len(source) > SOURCE_CHARS_MAX:
        raise SettingsInvalid(f"TAILRACE_PROMPTS: {file}: it has more than {SOURCE_CHARS_MAX} characters")
    return source
