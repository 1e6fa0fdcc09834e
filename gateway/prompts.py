"""The prompts that the operator has written: templates in a folder, by name. A process of its own fills them.

They are read once, at the start. A name is looked up among those that were found there, and never becomes a path.
"""

import re
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from gateway.ask import Ask, Filled
from proto.child import Child
from proto.errors import Refused, SettingsInvalid, Unfinished
from proto.ids import Tenant

PROGRAM = Path(__file__).with_name("prompt_process.py")
# What it may compute is in the program, and less: a machine that is busy makes no template wrong.
FILL_S_MAX = 10.0
SUFFIX = ".j2"
NAME = re.compile(r"[a-z0-9_-]{1,64}")
SOURCE_CHARS_MAX = 65_536

A = TypeVar("A", bound=msgspec.Struct)


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


class _Made(msgspec.Struct, frozen=True, kw_only=True):
    system: str | None = None
    message: str | None = None
    error: str | None = None


class Prompts:
    """Those of one folder; none until they are read."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._child = Child(PROGRAM)
        self._prompts: dict[str, tuple[Prompt, str]] = {}

    async def read(self) -> None:
        """Reads the folder; raises SettingsInvalid with what is wrong with which file."""
        if not self._folder:
            return
        sources = sources_in(Path(self._folder))
        try:
            described = await self._said([*sources.values()], None, _Described, "")
        except Unfinished as error:
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

    async def filled(self, ask: Ask, wanted: Filled, whose: Tenant) -> Ask:
        """`ask`, saying what the prompt makes of its variables. Raises Refused."""
        prompt, source = self._found(wanted.name)
        if unknown := wanted.variables.keys() - set(prompt.variables):
            names = ", ".join(prompt.variables) or "none"
            raise Refused("prompt_invalid", f"`{prompt.name}` has no variable `{min(unknown)[:64]}`; there are {names}")
        if "message" in prompt.makes and (ask.message is not None or ask.messages is not None):
            raise Refused("request_invalid", f"`{prompt.name}` makes the message: send no other")
        if "system" in prompt.makes and ask.system is not None:
            raise Refused("request_invalid", f"`{prompt.name}` makes the system prompt: send no other")
        try:
            (made,) = await self._said([source], wanted.variables, _Made, whose)
        except Unfinished as error:
            raise Refused("prompt_invalid", f"`{prompt.name}` cannot be filled: {error}") from error
        if made.error is not None:
            raise Refused("prompt_invalid", f"`{prompt.name}` cannot be filled: {made.error}")
        given = {name: text for name in prompt.makes if (text := getattr(made, name)) is not None}
        return msgspec.structs.replace(ask, prompt=None, **given)

    def _found(self, name: str) -> tuple[Prompt, str]:
        if name not in self._prompts:
            raise Refused("prompt_not_found", "there is no such prompt: GET /v1/prompts lists them")
        return self._prompts[name]

    async def _said(
        self, sources: list[str], variables: dict[str, object] | None, kind: type[A], whose: str
    ) -> list[A]:
        asked = msgspec.json.encode({"sources": sources, "variables": variables})
        return msgspec.json.decode(await self._child.said(asked, FILL_S_MAX, whose), type=list[kind])  # type: ignore[valid-type]


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
