"""How settings are read and shown; what each process has is in its own `settings.py`."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest

from tailrace.proto.errors import SettingsInvalid
from tailrace.proto.runtime.settings import read, render, table


class Settings(msgspec.Struct, frozen=True):
    nats_url: Annotated[str, msgspec.Meta(description="where NATS is")] = "nats://127.0.0.1:4222"
    grace_s: Annotated[float, msgspec.Meta(description="how long to wait", ge=0)] = 8.0
    turns_max: Annotated[int, msgspec.Meta(description="how many at once")] = 100
    is_open: Annotated[bool, msgspec.Meta(description="whether anybody may")] = False
    log_format: Annotated[Literal["json", "console"], msgspec.Meta(description="for machines or people")] = "json"
    anthropic_api_key: Annotated[str, msgspec.Meta(description="Claude's key")] = ""


def test_nothing_given_is_the_defaults() -> None:
    """A laptop needs no setting at all; what belongs to others is not looked at."""
    assert read(Settings, {"PATH": "x", "TAILRACE_OTHER": "y"}) == Settings()


def test_settings_are_read_by_their_names_in_capitals() -> None:
    """TAILRACE_ and the field's name, but Anthropic's own names as everybody knows them."""
    environ = {
        "TAILRACE_NATS_URL": "nats://h:1",
        "TAILRACE_GRACE_S": "0.5",
        "TAILRACE_TURNS_MAX": "7",
        "TAILRACE_IS_OPEN": "true",
        "TAILRACE_LOG_FORMAT": "console",
        "ANTHROPIC_API_KEY": "k",
        "TAILRACE_ANTHROPIC_API_KEY": "not this",
    }
    assert read(Settings, environ) == Settings("nats://h:1", 0.5, 7, True, "console", "k")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("TAILRACE_TURNS_MAX", "many", "Expected `int`"),
        ("TAILRACE_TURNS_MAX", "", "Expected `int`"),
        ("TAILRACE_GRACE_S", "-1", ">= 0"),
        ("TAILRACE_LOG_FORMAT", "xml", "xml"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(name: str, text: str, says: str) -> None:
    """The message names the variable and what is wrong with it, and nothing of the program's inside."""
    with pytest.raises(SettingsInvalid, match=f"^{name}: .*{says}") as refused:
        read(Settings, {name: text})
    assert "$." not in str(refused.value)


def test_a_path_is_a_setting_like_any_other() -> None:
    """Where a file is kept is read as a path, which msgspec does not do by itself."""

    class Kept(msgspec.Struct, frozen=True):
        database: Annotated[Path, msgspec.Meta(description="the file")] = Path("a.db")

    assert read(Kept, {"TAILRACE_DATABASE": "/data/b.db"}) == Kept(Path("/data/b.db"))
    assert read(Kept, {}) == Kept()


def test_the_table_has_a_row_for_each_setting() -> None:
    """Name, type, default, meaning; an empty default is none."""
    assert table(Settings) == [
        ("TAILRACE_NATS_URL", "str", "nats://127.0.0.1:4222", "where NATS is"),
        ("TAILRACE_GRACE_S", "float", "8.0", "how long to wait"),
        ("TAILRACE_TURNS_MAX", "int", "100", "how many at once"),
        ("TAILRACE_IS_OPEN", "bool", "False", "whether anybody may"),
        ("TAILRACE_LOG_FORMAT", "json, console", "json", "for machines or people"),
        ("ANTHROPIC_API_KEY", "str", "none", "Claude's key"),
    ]


def test_the_table_is_printed_for_people() -> None:
    """`--env` prints two lines a setting."""
    assert "TAILRACE_TURNS_MAX  (int, default 100)\n    how many at once" in render(Settings)
