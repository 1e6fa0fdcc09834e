"""What `up` says to the person at the terminal."""

import pytest

from tailrace.deploy.local.banner import welcome, who_answers

ROWS = [("gateway-1", "12", "http://x", "metrics http://y"), ("generator-1", "-", "", "metrics http://z")]


def test_the_welcome_shows_what_runs_where_and_one_line_to_try() -> None:
    """Names, pids and addresses stand in columns; a process that is just restarting has no pid."""
    assert (
        welcome(ROWS, "http://x", "/data", is_key_needed=False)
        == """
  gateway-1    12  http://x  metrics http://y
  generator-1  -             metrics http://z

  everything is kept in /data; try

  curl -N http://x/v1/turns -H 'Content-Type: application/json' -H 'Accept: text/event-stream' \
-d '{"message": "Why is the sky blue?"}'
"""
    )


def test_where_a_key_is_asked_for_the_line_to_try_has_its_place() -> None:
    """Whoever set TAILRACE_API_KEYS knows a key, and `up` knows only its hash."""
    open_door = welcome(ROWS, "http://x", "/data", is_key_needed=False)
    assert welcome(ROWS, "http://x", "/data", is_key_needed=True) == open_door.replace(
        "/v1/turns ", "/v1/turns -H 'Authorization: Bearer YOUR-KEY' "
    )


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        ({}, "is not set: a simulated Claude answers, and costs nothing"),
        ({"ANTHROPIC_API_KEY": ""}, "is not set: a simulated Claude answers, and costs nothing"),
        ({"ANTHROPIC_API_KEY": "k"}, "is set: the real Claude answers, at https://api.anthropic.com, and costs money"),
        (
            {"ANTHROPIC_API_KEY": "k", "ANTHROPIC_BASE_URL": "https://proxy.example"},
            "is set: the real Claude answers, at https://proxy.example, and costs money",
        ),
    ],
)
def test_it_is_said_who_answers_and_whether_that_costs_money(environ: dict[str, str], sentence: str) -> None:
    """A key that lies about in the environment must not become a bill unnoticed."""
    assert who_answers(environ) == f"ANTHROPIC_API_KEY {sentence}"
