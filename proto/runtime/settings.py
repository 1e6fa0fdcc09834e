"""Reads settings Structs from environment variables and prints them as a table.

Each service declares a frozen Struct in its `settings.py`. The variable of a field is `TAILRACE_` and the field's name
in capitals. `Annotated[..., Meta(description=...)]` gives the field's meaning in one line.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import msgspec

from tailrace.proto.errors import SettingsInvalid
from tailrace.proto.runtime.did_you_mean import find_closest

PREFIX = "TAILRACE_"
# Variables that other programs use under the same name.
STANDARD_NAMES = {
    "anthropic_api_key": "ANTHROPIC_API_KEY",
    "anthropic_base_url": "ANTHROPIC_BASE_URL",
    "claude_code_oauth_token": "CLAUDE_CODE_OAUTH_TOKEN",
}

# All other values are read without spaces and line breaks at their ends, which no path or name has on purpose.
KEPT_AS_GIVEN = frozenset({"jwt_secret"})

# Settings that this version does not have any more, each with the reason why it has no effect.
REMOVED = {"TAILRACE_HEDGE_AFTER_S": "hedging was removed: a late first token is not requested a second time"}

# More than the similarity of any two settings of different processes: none is taken for a typing error.
SIMILARITY_MIN = 0.86

S = TypeVar("S", bound=msgspec.Struct)
P = TypeVar("P", bound=msgspec.Struct)


class NoSettings(msgspec.Struct, frozen=True):
    """The settings of a feature that has none."""


def read(kind: type[S], environ: Mapping[str, str]) -> S:
    """Reads the settings of `kind` from `environ`. Raises SettingsInvalid with the variable and its valid values."""
    given = {
        name: environ[env_name(name)] if name in KEPT_AS_GIVEN else environ[env_name(name)].strip()
        for name in kind.__struct_fields__
        if env_name(name) in environ
    }
    hints, annotated = get_type_hints(kind), get_type_hints(kind, include_extras=True)
    for name, text in given.items():
        try:
            value = getattr(convert(kind, {name: text}), name)
        except msgspec.ValidationError as error:
            why = str(error).removesuffix(f" - at `$.{name}`")
            if not text and hints[name] is not str:
                why = "it is empty"
            elif why.endswith(", got `str`"):
                # The description names the type that was expected.
                why = repr(text)
            if "matching regex" in why:
                # The description says in words what the expression means.
                raise SettingsInvalid(
                    f"{env_name(name)}: {text!r} is not a valid {meaning(annotated[name])}"
                ) from error
            raise SettingsInvalid(f"{env_name(name)}: {why}; expected {describe_values(hints[name])}") from error
        if isinstance(value, float) and not math.isfinite(value):
            raise SettingsInvalid(f"{env_name(name)}: {text} is not finite; expected {describe_values(hints[name])}")
    return convert(kind, given)


def extend(kind: type[S], parts: Iterable[type[msgspec.Struct]]) -> type[S]:
    """Returns the settings of `kind` with the settings of each of `parts`, as one Struct."""
    fields = [
        (field.encode_name, field.type, field.default) for part in parts for field in msgspec.structs.fields(part)
    ]
    extended = msgspec.defstruct(
        kind.__name__, fields, bases=(kind,), module=kind.__module__, frozen=True, kw_only=True
    )
    return cast("type[S]", extended)


def select(settings: msgspec.Struct, part: type[P]) -> P:
    """Returns the fields of `settings` that `part` has; the defaults of `part` if `settings` has none of them."""
    return msgspec.convert(settings, part, from_attributes=True)


def find_mistyped(kind: type[msgspec.Struct], environ: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables that look like mistyped settings of `kind`, each with the name of that setting.

    Settings of other processes are not returned: the same environment may have them.
    """
    known = {name.removeprefix(PREFIX): name for name in map(env_name, kind.__struct_fields__)}
    unknown = (name for name in sorted(environ) if name.startswith(PREFIX) and name not in known.values())
    closest = {name: find_closest(name.removeprefix(PREFIX), known, SIMILARITY_MIN) for name in unknown}
    return {name: known[found] for name, found in closest.items() if found}


def find_removed(environ: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables in `environ` whose settings no longer exist, each with the reason why it has no effect."""
    return {name: why for name, why in REMOVED.items() if name in environ}


def describe_values(kind: object) -> str:
    """Describes the valid values of a setting of type `kind`."""
    if get_origin(kind) is Union:
        return " or ".join(map(describe_values, get_args(kind)))
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    return {bool: "true or false", int: "a whole number", float: "a number"}.get(kind, "a text")  # type: ignore[call-overload,no-any-return]


def convert(kind: type[S], given: Mapping[str, str]) -> S:
    """Returns the texts of environment variables as settings. Raises msgspec.ValidationError."""
    return msgspec.convert(given, type=kind, strict=False, dec_hook=from_text)


def from_text(kind: type, text: object) -> object:
    """msgspec's decoding hook: converts a text to a Path.

    Raises TypeError for another value, and NotImplementedError for another type of a setting.
    """
    if kind is Path:
        if not isinstance(text, str):
            # Like msgspec's own errors. Those of `Path` differ between versions of Python.
            raise TypeError(f"Expected `str`, got `{type(text).__name__}`")
        return Path(text)
    raise NotImplementedError(f"settings of type {kind.__name__} are not supported")


def env_name(field: str) -> str:
    """Returns the environment variable of a setting: `TAILRACE_…`, or the name that other programs use."""
    return STANDARD_NAMES.get(field, PREFIX + field.upper())


def table(kind: type[msgspec.Struct]) -> list[tuple[str, str, str, str]]:
    """Returns a row per setting: variable, type, default, meaning."""
    plain, annotated = get_type_hints(kind), get_type_hints(kind, include_extras=True)
    return [
        (env_name(f.name), type_name(plain[f.name]), default_text(f.default), meaning(annotated[f.name]))
        for f in msgspec.structs.fields(kind)
    ]


def render(kind: type[msgspec.Struct]) -> str:
    """Returns the table as text for `--env`."""
    return "\n".join(f"{name}  ({type_}, default {default})\n    {why}" for name, type_, default, why in table(kind))


def type_name(kind: object) -> str:
    if get_origin(kind) is Union:
        return " or ".join(map(type_name, get_args(kind)))
    text = kind.__name__ if isinstance(kind, type) else str(kind)
    return text.replace("typing.", "").replace("Literal", "").strip("[]").replace("'", "")


def default_text(default: object) -> str:
    return "none" if default in ("", None) else str(default)


def meaning(hint: object) -> str:
    """Returns the description in the annotation of a setting; an empty text without one."""
    for extra in getattr(hint, "__metadata__", ()):
        if isinstance(extra, msgspec.Meta) and extra.description:
            return extra.description
    return ""
