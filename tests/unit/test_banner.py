"""Texts that `tailrace up` prints at the start."""

import pytest

from tailrace.deploy.local.banner import model_banner, render_banner

ROWS = [("gateway-1", "12", "http://x", "metrics http://y"), ("generator-1", "-", "", "metrics http://z")]

SIMULATED = "simulated Claude, free of charge; for real answers, set ANTHROPIC_API_KEY and start again"
LOGIN = "Claude Code with your login, because CLAUDE_CODE_OAUTH_TOKEN is set"
OTHER = "the backend bedrock, because TAILRACE_BACKENDS names it first: each turn may cost money"
PAID = "because ANTHROPIC_API_KEY is set: each turn costs money"


def test_the_banner_lists_processes_addresses_and_a_command_to_try() -> None:
    """Names, pids and addresses are in columns; a process that is being restarted has no pid."""
    assert (
        render_banner(ROWS, "http://x", "/data", page="http://x/#demo=token", model="Claude", needs_key=False)
        == """
  gateway-1    12  http://x  metrics http://y
  generator-1  -             metrics http://z

  Open this page:  http://x/#demo=token
  Model:           Claude
  Data directory:  /data
  API reference:   http://x/docs
  Operations:      http://x/ops
  Stop:            Ctrl-C

  Try it:

  curl -N http://x/v1/turns -H 'Content-Type: application/json' -H 'Accept: text/event-stream' \
-d '{"message": "Why is the sky blue?"}'
"""
    )


def test_the_banner_has_a_warning_and_a_placeholder_when_a_key_is_needed() -> None:
    """Of a refused model key, for example. `up` knows only the hashes of keys."""

    def banner_text(warning: str = "", *, needs_key: bool = False) -> str:
        page = "http://x/#demo"
        return render_banner(ROWS, "http://x", "/data", page=page, model="Claude", needs_key=needs_key, warning=warning)

    assert "  Stop:            Ctrl-C\n  Warning:         the key is refused\n\n  Try it:" in banner_text(
        "the key is refused"
    )
    assert banner_text(needs_key=True) == banner_text().replace(
        "/v1/turns ", "/v1/turns -H 'Authorization: Bearer YOUR-KEY' "
    )


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        ({}, SIMULATED),
        ({"ANTHROPIC_API_KEY": ""}, SIMULATED),
        ({"ANTHROPIC_API_KEY": "k"}, f"Claude at https://api.anthropic.com, {PAID}"),
        (
            {"ANTHROPIC_API_KEY": "k", "ANTHROPIC_BASE_URL": "https://proxy.example"},
            f"Claude at https://proxy.example, {PAID}",
        ),
        ({"TAILRACE_BACKENDS": "bedrock, claude"}, OTHER),
        ({"TAILRACE_BACKENDS": "bedrock", "ANTHROPIC_API_KEY": "k", "CLAUDE_CODE_OAUTH_TOKEN": "t"}, OTHER),
        ({"TAILRACE_BACKENDS": "claude_code", "CLAUDE_CODE_OAUTH_TOKEN": "t"}, LOGIN),
    ],
)
def test_the_model_banner_says_which_model_answers_and_the_cost(environ: dict[str, str], sentence: str) -> None:
    """A key that happens to be in the environment must not lead to an unexpected bill."""
    assert model_banner(environ) == sentence
