"""The kind of backend `claude_code`, and its settings."""

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from tailrace.generators.backends.registry import BackendKind


class ClaudeCodeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of Claude Code beside Anthropic's API key and URL."""

    claude_code_oauth_token: Annotated[
        str, Meta(description="token of `claude setup-token`: claude_code uses your login instead of an API key")
    ] = ""
    claude_code_binary: Annotated[
        str, Meta(description="path of Claude Code's program; empty: searched on PATH and in its usual folders")
    ] = ""
    claude_code_root: Annotated[
        Path, Meta(description="folder of Claude Code's working folders, one for each project")
    ] = Path(".tailrace/projects")
    claude_code_tools: Annotated[
        str, Meta(description="tools that Claude Code may use, in the format of --allowedTools; it refuses all others")
    ] = "Read, Glob, Grep"


BACKEND = BackendKind("claude_code", "tailrace.features.claude_code.backend", ClaudeCodeSettings)
