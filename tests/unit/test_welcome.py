"""What `up` says to the person at the terminal."""

import pytest

from tailrace.deploy.local.banner import model_banner, render_banner

ROWS = [("gateway-1", "12", "http://x", "metrics http://y"), ("generator-1", "-", "", "metrics http://z")]


def test_the_welcome_shows_what_runs_where_and_one_line_to_try() -> None:
    """Names, pids and addresses stand in columns; a process that is just restarting has no pid."""
    assert (
        render_banner(ROWS, "http://x", "/data", needs_key=False)
        == """
  gateway-1    12  http://x  metrics http://y
  generator-1  -             metrics http://z

  Data directory:  /data
  API reference:   http://x/docs
  Stop:            Ctrl-C

  Try it:

  curl -N http://x/v1/turns -H 'Content-Type: application/json' -H 'Accept: text/event-stream' \
-d '{"message": "Why is the sky blue?"}'
"""
    )


def test_where_a_key_is_asked_for_the_line_to_try_has_its_place() -> None:
    """Whoever set TAILRACE_API_KEYS knows a key, and `up` knows only its hash."""
    open_door = render_banner(ROWS, "http://x", "/data", needs_key=False)
    assert render_banner(ROWS, "http://x", "/data", needs_key=True) == open_door.replace(
        "/v1/turns ", "/v1/turns -H 'Authorization: Bearer YOUR-KEY' "
    )


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        ({}, "is not set: a simulated Claude answers, free of charge"),
        ({"ANTHROPIC_API_KEY": ""}, "is not set: a simulated Claude answers, free of charge"),
        ({"ANTHROPIC_API_KEY": "k"}, "is set: Claude at https://api.anthropic.com answers, and each turn costs money"),
        (
            {"ANTHROPIC_API_KEY": "k", "ANTHROPIC_BASE_URL": "https://proxy.example"},
            "is set: Claude at https://proxy.example answers, and each turn costs money",
        ),
    ],
)
def test_it_is_said_who_answers_and_whether_that_costs_money(environ: dict[str, str], sentence: str) -> None:
    """A key that lies about in the environment must not become a bill unnoticed."""
    assert model_banner(environ) == f"ANTHROPIC_API_KEY {sentence}"
