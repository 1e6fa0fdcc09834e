"""Writes the configuration of Compose's nginx from deploy/proxies/nginx.conf, which has TLS and two server blocks."""

import re
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "deploy/proxies/nginx.conf"
PATH = "deploy/container/nginx.conf"
# The file system of the container is read-only except /tmp, and its user is not root.
TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
IN_CONTAINER = (
    *(f"  {name}_temp_path /tmp/{name};" for name in TEMPORARY),
    "  access_log /dev/stdout tailrace;",
    "  error_log /dev/stderr warn;",
)
# Directives of TLS, and those that have another value in the container.
LEFT_OUT = re.compile(r" +(ssl_\w+|server_name|access_log) .*")


def generate_files(written_by: str) -> dict[str, str]:
    """Returns the content of the generated file by its path in the repository."""
    return {PATH: for_container(SOURCE.read_text(), written_by)}


def for_container(source: str, written_by: str) -> str:
    """Returns `source` with one server block, for the port 8080 without TLS."""
    redirect = _block(source, "server {\n    listen 80;")
    lines = source.replace(redirect, "").splitlines()
    kept = [line for line in lines if not line.startswith("#") or "soft limit" in line or "stream uses" in line]
    kept = [line for line in kept if not LEFT_OUT.fullmatch(line)]
    kept = ["    listen 8080;" if line.strip().startswith("listen 443 ") else line for line in kept]
    end_of_format = next(number for number, line in enumerate(kept) if "$request_time" in line)
    kept[end_of_format + 1 : end_of_format + 1] = IN_CONTAINER
    head = f"# nginx of compose.yaml, without TLS. {written_by} It is made from deploy/proxies/nginx.conf."
    return "\n".join([head, "pid /tmp/nginx.pid;", *kept]) + "\n"


def _block(source: str, begin: str) -> str:
    """Returns the text of the block that begins with `begin`, and the blank line after it."""
    start = source.index(begin)
    start = source.rindex("\n", 0, start) + 1
    end = source.index("\n  }\n", start) + len("\n  }\n")
    return source[start:end] + "\n"
