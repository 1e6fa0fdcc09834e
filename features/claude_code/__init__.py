"""The backend `claude_code`: Claude Code answers, with its own tools in a folder of the turn's project."""
