"""The configuration file `tailrace.toml` and the `.env` beside it: reads and checks them, and writes an example.

The name of a setting in the file is that of its environment variable, in lower case and without `TAILRACE_`. The table
`[up]` has the options of `tailrace up`. Environment variables override `.env`, and `.env` overrides the file.
"""

import json
import textwrap
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import get_type_hints

import msgspec
from dotenv.parser import parse_stream
from platformdirs import user_config_path

from tailrace.deploy.local.check_environment import SERVICES
from tailrace.deploy.local.config_path import ADDRESS, DOTENV, NAME, Configuration
from tailrace.deploy.local.options import Options
from tailrace.gateway.settings import Settings as GatewaySettings
from tailrace.proto.errors import SettingsInvalid
from tailrace.proto.runtime import settings
from tailrace.proto.runtime.did_you_mean import suggest
from tailrace.proto.service import ModelSettings, ProcessSettings

UP = "up"
# The options in the table `[up]`, by their names on the command line, and their fields in `Options`.
OPTIONS = {"data": "data_dir", **{name: name for name in ("generators", "gateways", "cluster", "sync")}}
# `up` chooses these settings for its processes, so the example leaves them out.
CHOSEN_BY_UP = {
    *("nats_url", "database", "listen_fd", "disk", "first_key_file", "ops_targets", "generator", "webhooks"),
    "metrics_targets",
}
# Settings that belong in `.env`.
SECRETS = ("anthropic_api_key", "claude_code_oauth_token", "jwt_secret", "webhook_key")
HEAD = f"""\
# Settings of Tailrace. The command `tailrace` reads the file {NAME} in the current folder or in
# {{folder}}, or the file that --config names.
#
# Each line `#name = value` shows a default: remove its # to change it. Paths are relative to the current folder.
# Environment variables override this file; the variable of heartbeat_s is TAILRACE_HEARTBEAT_S.
#
# Keep secrets out of this file. Write them into a file called .env beside it, which only you may read, one NAME=VALUE a
# line: {{secrets}}.
"""
WIDTH = 118
# Some editors write a byte order mark. The mark would become a part of the first name.
ENCODING = "utf-8-sig"


def merge(path: Path | None, environ: Mapping[str, str]) -> Configuration:
    """Returns the environment over the `.env` beside the file, and both over the file.

    Raises SettingsInvalid with the file, the name and what is expected.
    """
    texts, options = read(path) if path is not None else ({}, {})
    beside = read_dotenv(path.with_name(DOTENV)) if path is not None else {}
    merged = {**texts, **beside, **environ}
    configured = settings.read(GatewaySettings, {name: merged[name] for name in ADDRESS.values() if merged.get(name)})
    address = {key: getattr(configured, key) for key, name in ADDRESS.items() if merged.get(name)}
    return Configuration(merged, {**address, **options})


def read(path: Path) -> tuple[dict[str, str], dict[str, object]]:
    """Returns the settings of the file as environment variables, and its options of `up`."""
    try:
        document = tomllib.loads(path.read_text(encoding=ENCODING))
    except OSError as error:
        raise SettingsInvalid(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # invalid TOML or invalid UTF-8
        raise SettingsInvalid(f"{path} is not valid TOML: {error}") from error
    table = document.pop(UP, {})
    if not isinstance(table, dict):
        raise SettingsInvalid(f"{path}: {UP} is a table: write [{UP}] above the options of `tailrace up`")
    fields = setting_names()
    texts = {}
    for name, value in document.items():
        if name in OPTIONS:
            raise SettingsInvalid(f"{path}: {name} is an option of `tailrace up`: write it below a line [{UP}]")
        if name not in fields and settings.env_name(name) not in settings.REMOVED:
            hint = suggest(name.lower().removeprefix("tailrace_"), fields)
            raise SettingsInvalid(f"{path}: {name} is not a setting{hint}; `tailrace explain settings` lists all")
        texts[settings.env_name(name)] = text_of(path, name, value)
    for name, text in texts.items():
        check_value(path, name, text)
    return texts, {name: option_of(path, name, value, fields) for name, value in table.items()}


def setting_names() -> set[str]:
    return {field for _, kind in SERVICES for field in kind.__struct_fields__}


def text_of(path: Path, name: str, value: object) -> str:
    """Returns a value as the text of an environment variable."""
    if isinstance(value, list):
        return ",".join(text_of(path, name, each) for each in value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value)
    raise SettingsInvalid(f"{path}: {name} is not a text, a number, true or false")


def check_value(path: Path, variable: str, text: str) -> None:
    """Raises SettingsInvalid, with the path and the name in the file, if a process would refuse the value."""
    for _, kind in SERVICES:
        try:
            settings.read(kind, {variable: text})
        except SettingsInvalid as error:
            name = next(field for field in kind.__struct_fields__ if settings.env_name(field) == variable)
            raise SettingsInvalid(f"{path}: {name}{str(error).removeprefix(variable)}") from error


def option_of(path: Path, name: str, value: object, fields: set[str]) -> object:
    """Returns the value of an option of `[up]`, converted to the type of the option. Raises SettingsInvalid."""
    if name in fields - CHOSEN_BY_UP:
        raise SettingsInvalid(f"{path}: {name} is a setting, not an option of [{UP}]: move it above the line [{UP}]")
    if name not in OPTIONS:
        hint = suggest(name, OPTIONS)
        raise SettingsInvalid(f"{path}: {name} is not an option of [{UP}]{hint}; it has {', '.join(OPTIONS)}")
    hints = get_type_hints(Options, include_extras=True)
    try:
        found: object = msgspec.convert(value, hints[OPTIONS[name]], dec_hook=settings.from_text)
        # No shell has expanded it. argparse converts a default text as it converts a given value.
        return str(found.expanduser()) if isinstance(found, Path) else found
    except (msgspec.ValidationError, RuntimeError) as error:
        raise SettingsInvalid(f"{path}: [{UP}] {name}: {error}") from error


def read_dotenv(path: Path) -> dict[str, str]:
    """Returns the variables of a `.env` file, without expanding `$NAME`; an empty dict if there is no such file."""
    try:
        with path.open(encoding=ENCODING) as file:
            bindings = list(parse_stream(file))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsInvalid(f"{path} cannot be read: {error}") from error
    texts = {}
    for each in bindings:
        if each.error or (each.key is not None and each.value is None):
            raise SettingsInvalid(f"{path}: line {each.original.line} is not NAME=VALUE")
        if each.key is not None and each.value is not None:
            texts[each.key] = each.value
    return texts


def example() -> str:
    """Returns the text of a file in which each setting except the secrets is a comment with its meaning and default."""
    secrets = ", ".join(map(settings.env_name, SECRETS))
    lines = [HEAD.format(folder=user_config_path("tailrace", appauthor=False), secrets=secrets)]
    seen: set[str] = {*CHOSEN_BY_UP, *SECRETS}
    kinds: list[tuple[str, type[ProcessSettings]]] = [("every process", ModelSettings), *SERVICES]
    for title, kind in kinds:
        names = [name for name in kind.__struct_fields__ if name not in seen]
        seen |= set(names)
        lines += [f"# ---- {title} ----", "", *setting_lines(names)]
    lines += ["# ---- options of `tailrace up`: all settings stay above this line ----", "", f"[{UP}]", ""]
    hints = get_type_hints(Options, include_extras=True)
    for key, name in OPTIONS.items():
        default = ".tailrace" if key == "data" else getattr(Options(), name)
        lines += option_lines(key, default, [settings.meaning(hints[name])])
    return "\n".join(lines)


def setting_lines(names: Iterable[str]) -> Iterator[str]:
    """Yields the lines of settings. If processes describe a setting differently, all descriptions are listed."""
    for name in names:
        kinds = {service: kind for service, kind in SERVICES if name in kind.__struct_fields__}
        meanings = {
            service: settings.meaning(get_type_hints(kind, include_extras=True)[name])
            for service, kind in kinds.items()
        }
        first, *others = meanings.items()
        descriptions = [first[1], *(f"{service}: {text}" for service, text in others if text != first[1])]
        field = {f.name: f for f in msgspec.structs.fields(kinds[first[0]])}[name]
        yield from option_lines(name, field.default, descriptions)


def option_lines(name: str, default: object, meanings: Iterable[str]) -> list[str]:
    text = default if isinstance(default, bool | int | float | str) else str(default)
    comments = [
        line
        for meaning in meanings
        for line in textwrap.wrap(meaning, WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
    ]
    return [*comments, f"#{name} = {json.dumps(text)}", ""]
