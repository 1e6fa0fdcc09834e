"""Reading settings from the environment, and printing them for `--env`."""

from typing import Annotated

import msgspec

from tailrace.proto.runtime.settings import read, render


class Settings(msgspec.Struct, frozen=True):
    nats_url: Annotated[str, msgspec.Meta(description="where NATS is")] = "nats://127.0.0.1:4222"
    turns_max: Annotated[int, msgspec.Meta(description="how many at once")] = 100
    anthropic_api_key: Annotated[str, msgspec.Meta(description="Claude's key")] = ""


def test_spaces_around_a_value_are_ignored() -> None:
    """No path or name has them on purpose. A line break at the end of a secret counts, as it did before."""

    class Secret(msgspec.Struct, frozen=True):
        jwt_secret: str = ""

    assert read(Settings, {"TAILRACE_NATS_URL": " nats://h:1\n", "ANTHROPIC_API_KEY": "  "}) == Settings("nats://h:1")
    assert read(Secret, {"TAILRACE_JWT_SECRET": " s\n"}).jwt_secret == " s\n"


def test_render_prints_two_lines_per_setting() -> None:
    assert "TAILRACE_TURNS_MAX  (int, default 100)\n    how many at once" in render(Settings)
