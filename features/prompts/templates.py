"""Prompt templates of the operator: Jinja2 files in the folder TAILRACE_PROMPTS, rendered in a subprocess.

The folder is read once, at the start. A client names a template; the name is looked up and never becomes a path.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from tailrace.features.common.sandbox import Sandbox
from tailrace.gateway.turns.request_body import BODY_LEVELS_MAX, Params, PromptUse
from tailrace.proto.depth import is_deeper
from tailrace.proto.errors import Refused, SandboxBusy, SandboxFailed, SettingsInvalid
from tailrace.proto.ids import Tenant

WORKER = Path(__file__).with_name("worker.py")
# Longer than the CPU limit of the worker: on a busy machine a template that is fine may wait for the CPU.
RENDER_S_MAX = 10.0
SUFFIX = ".j2"
NAME = re.compile(r"[a-z0-9_-]{1,64}")
SOURCE_CHARS_MAX = 65_536

# One subprocess renders this many: starting one takes longer than most templates.
RENDERED_AT_ONCE = 200
# After so many failures of one call, a part that fails is not divided any more: each failure may take the CPU limit.
DIVIDED_MAX = 8
TOO_MUCH = "what the prompts make of the inputs until here is longer than {most} bytes: ask in several batches"

A = TypeVar("A", bound=msgspec.Struct)
P = TypeVar("P", bound=Params)


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """A template as `GET /v1/prompts` shows it: the variables that it takes, and the fields that it makes."""

    name: str
    """The name of the template."""
    description: str
    """The purpose of the template."""
    variables: list[str]
    """The variables that the template takes."""
    makes: list[Literal["system", "message"]]
    """The fields of a turn that the template makes."""


class _Description(msgspec.Struct, frozen=True, kw_only=True):
    description: str = ""
    variables: list[str] = []
    makes: list[Literal["system", "message"]] = []
    error: str | None = None


class RenderedTemplate(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that a template makes with its variables."""

    system: str | None = None
    message: str | None = None
    error: str | None = None


class Prompts:
    """The templates of one folder. Call `load` before use."""

    def __init__(self, folder: str, *, wait_s: float) -> None:
        """`wait_s`: how long a request waits for the subprocesses of other requests."""
        self._folder = folder
        self._child = Sandbox(WORKER, wait_s=wait_s)
        self._prompts: dict[str, tuple[Prompt, str]] = {}

    async def load(self) -> None:
        """Reads the folder. Raises SettingsInvalid, which names the file and the error."""
        if not self._folder:
            return
        sources = read_sources(Path(self._folder))
        try:
            descriptions = await self._run([*sources.values()], None, _Description, "")
        except SandboxFailed as error:
            raise SettingsInvalid(f"TAILRACE_PROMPTS: {self._folder} cannot be read: {error}") from error
        for (file, source), description in zip(sources.items(), descriptions, strict=True):
            if description.error is not None:
                raise SettingsInvalid(f"TAILRACE_PROMPTS: {file}: {description.error}")
            fields = {field: getattr(description, field) for field in ("description", "variables", "makes")}
            self._prompts[file.stem] = (Prompt(name=file.stem, **fields), source)

    def list_all(self) -> list[Prompt]:
        """Returns all templates, by name."""
        return [prompt for prompt, _ in self._prompts.values()]

    def find(self, name: str) -> Prompt:
        """Returns the template of this name. Raises Refused if there is none."""
        prompt, _ = self._find(name)
        return prompt

    async def render(self, params: P, tenant: Tenant) -> P:
        """Returns `params` with its prompt rendered into `system` and `message`. Raises Refused."""
        (result,) = await self.render_all([params], tenant)
        if isinstance(result, Refused):
            raise result
        return result

    async def render_all(self, params: Sequence[P], tenant: Tenant, bytes_max: int = sys.maxsize) -> list[P | Refused]:
        """Renders the prompt of each of `params` that names one; returns for each the result or its error.

        Stops at the result with which all results together are longer than `bytes_max` as JSON: this result becomes
        an error, and the later items are returned unchanged. Raises Refused if no subprocess was free within `wait_s`.
        """
        bytes_left = bytes_max
        results: list[P | Refused] = list(params)
        wanted: list[tuple[int, PromptUse]] = []
        for number, one in enumerate(params):
            if one.prompt is not None:
                try:
                    self._check(one, one.prompt)
                except Refused as refused:
                    results[number] = refused
                else:
                    wanted.append((number, one.prompt))
        parts = [wanted[first : first + RENDERED_AT_ONCE] for first in range(0, len(wanted), RENDERED_AT_ONCE)]
        divided = 0
        while parts:
            part = parts.pop(0)
            try:
                texts = await self._texts([prompt for _, prompt in part], tenant)
            except SandboxFailed as error:
                if len(part) > 1 and divided < DIVIDED_MAX:
                    # Inputs that are fine alone can exceed the limits of one subprocess together.
                    divided += 1
                    middle = len(part) // 2
                    parts[:0] = [part[:middle], part[middle:]]
                    continue
                texts = [render_error(prompt, error) for _, prompt in part]
            for (number, _), text in zip(part, texts, strict=False):
                if isinstance(text, Refused):
                    results[number] = text
                    continue
                results[number] = rendered = apply(params[number], text)
                # A template may repeat its variables a thousand times.
                bytes_left -= len(msgspec.json.encode(rendered))
                if bytes_left < 0:
                    results[number] = Refused("body_too_large", TOO_MUCH.format(most=bytes_max))
                    return results
            if rest := part[len(texts) :]:
                parts.insert(0, rest)
        return results

    def _check(self, params: Params, wanted: PromptUse) -> None:
        """Raises Refused for an unknown variable and for a field that both the client and the template set."""
        prompt, _ = self._find(wanted.name)
        if unknown := wanted.variables.keys() - set(prompt.variables):
            variables = self._list_variables(prompt.name)
            raise Refused(
                "prompt_invalid",
                f"The prompt `{prompt.name}` has no variable `{min(unknown)[:64]}`; {variables}",
                param="prompt.variables",
            )
        if is_deeper(wanted.variables, BODY_LEVELS_MAX):
            raise Refused("request_invalid", f"`prompt.variables` are nested more than {BODY_LEVELS_MAX} levels deep.")
        if "message" in prompt.makes and (params.message is not None or params.messages is not None):
            raise Refused(
                "request_invalid",
                f"The prompt `{prompt.name}` makes the message; leave out `message` and `messages`.",
                param="message" if params.messages is None else "messages",
            )
        if "system" in prompt.makes and params.system is not None:
            raise Refused(
                "request_invalid",
                f"The prompt `{prompt.name}` makes the system prompt; leave out `system`.",
                param="system",
            )

    async def _texts(self, wanted: Sequence[PromptUse], tenant: Tenant) -> list["RenderedTemplate | Refused"]:
        """Renders templates in one subprocess; returns fewer texts than `wanted` if they are long.

        Raises Refused if no subprocess was free in time, SandboxFailed.
        """
        names = list(dict.fromkeys(prompt.name for prompt in wanted))
        sources = [self._find(name)[1] for name in names]
        inputs = [(names.index(prompt.name), prompt.variables) for prompt in wanted]
        try:
            rendered = await self._run(sources, inputs, RenderedTemplate, tenant)
        except SandboxBusy as error:
            raise Refused("server_busy", f"The prompt `{names[0]}` was not rendered: {error}. Retry.") from error
        return [
            text if text.error is None else render_error(prompt, f"{text.error}; {self._list_variables(prompt.name)}")
            for prompt, text in zip(wanted, rendered, strict=False)
        ]

    def _find(self, name: str) -> tuple[Prompt, str]:
        if name not in self._prompts:
            message = f"There is no prompt `{name[:64]}`; GET /v1/prompts lists them."
            raise Refused("prompt_not_found", message, param="prompt")
        return self._prompts[name]

    def _list_variables(self, name: str) -> str:
        return "the prompt's variables are: " + (", ".join(self._find(name)[0].variables) or "none")

    async def _run(
        self, sources: list[str], inputs: list[tuple[int, dict[str, Any]]] | None, kind: type[A], tenant: str
    ) -> list[A]:
        task = msgspec.json.encode({"sources": sources, "inputs": inputs})
        return msgspec.json.decode(await self._child.run(task, RENDER_S_MAX, tenant), type=list[kind])  # type: ignore[valid-type]


def apply(params: P, text: RenderedTemplate) -> P:
    """Returns `params` with the rendered fields in place of `prompt`."""
    fields = {name: value for name in ("system", "message") if (value := getattr(text, name)) is not None}
    return msgspec.structs.replace(params, prompt=None, **fields)


def render_error(wanted: PromptUse, reason: object) -> Refused:
    """Returns the error for a template that cannot be rendered with these variables."""
    return Refused("prompt_invalid", f"The prompt `{wanted.name}` cannot be rendered: {reason}", param="prompt")


def read_sources(folder: Path) -> dict[Path, str]:
    """Returns the text of each template file in a folder. Raises SettingsInvalid."""
    if not folder.is_dir():
        raise SettingsInvalid(f"TAILRACE_PROMPTS: the folder {folder} does not exist")
    return {file: read_source(file) for file in sorted(folder.glob(f"*{SUFFIX}"))}


def read_source(file: Path) -> str:
    """Returns the text of a template. Raises SettingsInvalid if its name is not valid or it is too long."""
    if NAME.fullmatch(file.stem) is None:
        raise SettingsInvalid(f"TAILRACE_PROMPTS: {file}: the name of a prompt has 1 to 64 characters of a-z 0-9 _ -")
    try:
        # With or without a byte order mark.
        source = file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsInvalid(f"TAILRACE_PROMPTS: {file}: {error}") from error
    if len(source) > SOURCE_CHARS_MAX:
        raise SettingsInvalid(f"TAILRACE_PROMPTS: {file}: it has more than {SOURCE_CHARS_MAX} characters")
    return source
