"""Finds the gateway of a command, from its options, the environment or the running `up`, and connects to it."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tailrace.client import Client, TailraceError
from tailrace.deploy.local import status_file
from tailrace.proto.errors import SettingsInvalid

PROBE_S = 5.0


def find_url(given: str | None, environ: Mapping[str, str], data_dir: Path) -> str | None:
    """Returns the address of `--url`, TAILRACE_URL or the running `up`; None if none of them is set."""
    if given or environ.get("TAILRACE_URL"):
        return given or environ["TAILRACE_URL"]
    up = status_file.read(data_dir)
    return up.url if up is not None else None


def connect(given: argparse.Namespace, environ: Mapping[str, str], **options: Any) -> Client:
    """Returns a client of the gateway. Raises SettingsInvalid for an unusable address or proxy."""
    url, key = find_url(given.url, environ, given.data), given.key or environ.get("TAILRACE_KEY")
    try:
        if url is None:
            require_gateway()
        return Client(url, key, **options)
    except TailraceError as error:
        raise SettingsInvalid(str(error)) from error
    except (ValueError, ImportError) as error:
        # httpx2 reads HTTP_PROXY, HTTPS_PROXY and ALL_PROXY. It supports SOCKS only with an additional package.
        raise SettingsInvalid(
            "the proxy in the environment cannot be used: set an http:// proxy, or unset the variable"
        ) from error


def require_gateway() -> None:
    """Raises SettingsInvalid if no gateway answers at the default address. Does not retry: none may run."""
    with Client(tries_max=0, silence_s=PROBE_S) as client:
        try:
            client.request("GET", "/health")
        except TailraceError as error:
            if error.status is None:
                raise SettingsInvalid("no gateway runs: start it with `tailrace up`, or name one with --url") from error
