"""Texts that `tailrace up` prints when it starts: the model in use, the process table and a command to try."""

from collections.abc import Mapping, Sequence

from tailrace.deploy.local.processes import is_simulated
from tailrace.deploy.local.terminal_text import table
from tailrace.generators.backend_order import parse_backends
from tailrace.generators.settings import Settings
from tailrace.proto.runtime.settings import read

TURN = '{"message": "Why is the sky blue?"}'


def model_banner(environ: Mapping[str, str]) -> str:
    """Returns which model answers and whether it costs money."""
    chosen = read(Settings, environ)
    first = parse_backends(chosen.backends).common[0].backend
    if first not in ("claude", "claude_code"):
        return f"the backend {first}, because TAILRACE_BACKENDS names it first: each turn may cost money"
    if is_simulated(environ):
        return "simulated Claude, free of charge; for real answers, set ANTHROPIC_API_KEY and start again"
    if environ.get("CLAUDE_CODE_OAUTH_TOKEN") and not environ.get("ANTHROPIC_API_KEY"):
        return "Claude Code with your login, because CLAUDE_CODE_OAUTH_TOKEN is set"
    return f"Claude at {chosen.anthropic_base_url}, because ANTHROPIC_API_KEY is set: each turn costs money"


def render_banner(
    rows: Sequence[Sequence[str]],
    url: str,
    data_dir: str,
    *,
    page: str,
    model: str,
    needs_key: bool,
    warning: str = "",
) -> str:
    """Returns the text that is shown when the system is ready. A row is a process: name, pid, addresses.

    `page` is the address of the page with chats; its fragment may be the token of the demo. `model` says which model
    answers.
    """
    key = "-H 'Authorization: Bearer YOUR-KEY' " if needs_key else ""
    shown = f"\n  Warning:         {warning}" if warning else ""
    return f"""
{table(rows)}

  Open this page:  {page}
  Model:           {model}
  Data directory:  {data_dir}
  API reference:   {url}/docs
  Operations:      {url}/ops
  Stop:            Ctrl-C{shown}

  Try it:

  curl -N {url}/v1/turns {key}-H 'Content-Type: application/json' -H 'Accept: text/event-stream' -d '{TURN}'
"""
