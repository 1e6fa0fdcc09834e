"""The version of Tailrace. The build reads it from here (pyproject.toml, tool.hatch.version)."""

VERSION = "0.1.0"
