"""Reading settings from the environment, and printing them for `--env`."""

from typing import Annotated, Literal

import msgspec

from tailrace.proto.runtime.settings import read, render


class Settings(msgspec.Struct, frozen=True):
    nats_url: Annotated[str, msgspec.Meta(description="where NATS is")] = "nats://127.0.0.1:4222"
    grace_s: Annotated[float, msgspec.Meta(description="how long to wait", ge=0)] = 8.0
    turns_max: Annotated[int, msgspec.Meta(description="how many at once")] = 100
    is_open: Annotated[bool, msgspec.Meta(description="whether anybody may")] = False
    log_format: Annotated[Literal["json", "console"], msgspec.Meta(description="for machines or people")] = "json"
    anthropic_api_key: Annotated[str, msgspec.Meta(description="Claude's key")] = ""


def test_an_empty_environment_gives_the_defaults() -> None:
    """Unknown variables are ignored."""
    assert read(Settings, {"PATH": "x", "TAILRACE_OTHER": "y"}) == Settings()


def test_variables_are_tailrace_and_the_field_in_capitals() -> None:
    """Except Anthropic's variables, which keep their names."""
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


def test_spaces_around_a_value_are_ignored() -> None:
    """No path or name has them on purpose. A line break at the end of a secret counts, as it did before."""

    class Secret(msgspec.Struct, frozen=True):
        jwt_secret: str = ""

    assert read(Settings, {"TAILRACE_NATS_URL": " nats://h:1\n", "ANTHROPIC_API_KEY": "  "}) == Settings("nats://h:1")
    assert read(Secret, {"TAILRACE_JWT_SECRET": " s\n"}).jwt_secret == " s\n"


def test_render_prints_two_lines_per_setting() -> None:
    assert "TAILRACE_TURNS_MAX  (int, default 100)\n    how many at once" in render(Settings)
