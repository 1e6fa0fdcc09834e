"""What a generator can be told by its environment."""

import re
import secrets
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from msgspec import Meta

from tailrace.proto.errors import SettingsInvalid
from tailrace.proto.runtime.main import ProcessSettings

# What a header can hold.
API_KEY = re.compile(r"[\x21-\x7e]+")


class Settings(ProcessSettings, frozen=True, kw_only=True):
    """Defaults work on a laptop; `python -m tailrace.generators --env` prints this table."""

    generator: Annotated[
        str, Meta(min_length=1, max_length=64, description="this process's name in the log; made unique by a suffix")
    ] = "generator"
    concurrency: Annotated[int, Meta(ge=1, description="turns that this process carries at once")] = 64
    backends: Annotated[
        str, Meta(description="whom to ask, and whom next when one fails, also for each model: docs/BACKENDS.md")
    ] = "claude"
    anthropic_api_key: Annotated[str, Meta(description="Claude's key; the backend claude needs one")] = ""
    anthropic_base_url: Annotated[str, Meta(description="Anthropic's API, or what speaks its protocol")] = (
        "https://api.anthropic.com"
    )
    claude_code_binary: Annotated[
        str, Meta(description="Claude Code's program; none: looked for on the path and in the usual places")
    ] = ""
    claude_code_root: Annotated[
        Path, Meta(description="where the working folders are that Claude Code has, one for each project")
    ] = Path(".tailrace/projects")
    claude_code_tools: Annotated[
        str, Meta(description="what Claude Code may use, as its --allowedTools has it; all else is refused")
    ] = "Read, Glob, Grep"
    connect_timeout_s: Annotated[float, Meta(gt=0, description="how long a connection to the model may take")] = 10.0
    stall_timeout_s: Annotated[
        float, Meta(gt=0, description="silence of the model after which its answer counts as broken off")
    ] = 30.0
    call_tries_max: Annotated[int, Meta(ge=1, description="calls of one attempt until the first event comes")] = 5
    call_wait_s: Annotated[float, Meta(ge=0, description="wait before the second call; doubles, with jitter")] = 0.5
    call_wait_max_s: Annotated[
        float, Meta(ge=0, description="longest wait between calls; a longer retry-after fails the turn")
    ] = 30.0
    hedge_after_s: Annotated[
        float,
        Meta(ge=0, description="wait for a first token after which another generator asks, too; 0: none ever does"),
    ] = 0.0
    large_bytes_max: Annotated[
        int, Meta(ge=1, description="bytes of pictures, documents and long texts held for calls at once; others wait")
    ] = 256 * 1024 * 1024
    attempts_max: Annotated[int, Meta(ge=1, description="attempts at one turn, over all generators")] = 5
    deadline_s: Annotated[
        float, Meta(gt=0, description="how long generators work on a turn, together, before it fails")
    ] = 900.0
    grace_s: Annotated[
        float, Meta(ge=0, description="how long running turns may finish at SIGTERM before others get them")
    ] = 5.0


def unique_name(settings: Settings) -> str:
    """The name for the log. Two processes must never share one: an attempt is recognised by it (PROTOCOL R13)."""
    return f"{settings.generator}-{secrets.token_hex(3)}"


def require_sound(settings: Settings) -> None:
    """Raises SettingsInvalid for a key of Claude's that no header can hold, and for an address that is no URL."""
    if API_KEY.fullmatch(settings.anthropic_api_key) is None:
        raise SettingsInvalid("ANTHROPIC_API_KEY: a key is visible ASCII, without spaces")
    try:
        url = urlsplit(settings.anthropic_base_url)
        is_url = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        is_url = False
    if not is_url:
        raise SettingsInvalid(f"ANTHROPIC_BASE_URL: {settings.anthropic_base_url!r} is no URL: expected https://HOST")
