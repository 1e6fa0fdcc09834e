"""Finds the gateway of a command, from its options, the environment or the running `up`, and connects to it."""

import argparse
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

from tailrace import client
from tailrace.client import Client
from tailrace.deploy.local import running, status_file
from tailrace.deploy.local.terminal_text import has_cursor, make_printable
from tailrace.proto.errors import SettingsInvalid, TailraceError

PROBE_S = 5.0
AGAIN = "The answer starts again:"
START = "start a gateway with `tailrace up`, or name one with --url"


class GatewayFailed(TailraceError):
    """A gateway cannot be reached, or has refused a request."""


def find_url(url: str | None, environ: Mapping[str, str], data_dir: Path) -> str | None:
    """Returns the address of `--url`, TAILRACE_URL or the running `up`; None without any of these.

    Raises SettingsInvalid if `--data` names a directory without a running `up`: another system may be at the default
    address.
    """
    if url or environ.get("TAILRACE_URL"):
        return url or environ["TAILRACE_URL"]
    up = status_file.read(data_dir)
    if up is None:
        if data_dir != running.find_data_dir():
            raise SettingsInvalid(status_file.explain_absence(data_dir))
        return None
    running.say_which(data_dir, "--url")
    return up.url


@contextmanager
def connect(args: argparse.Namespace, environ: Mapping[str, str], **options: Any) -> Iterator[Client]:
    """Yields a client of the gateway.

    Raises SettingsInvalid for an unusable address, directory or proxy, GatewayFailed for an error of the client within
    the block.
    """
    url, key = find_url(args.url, environ, args.data), args.key or environ.get("TAILRACE_KEY")
    try:
        if url is None:
            require_gateway()
        connected = Client(url, key, **{"on_retry": report_retry, **options})
    except client.TailraceError as error:
        raise SettingsInvalid(str(error)) from error
    except (ValueError, ImportError) as error:
        # httpx2 reads HTTP_PROXY, HTTPS_PROXY and ALL_PROXY. It supports SOCKS only with an additional package.
        raise SettingsInvalid(
            "the proxy in the environment cannot be used: set an http:// proxy, or unset the variable"
        ) from error
    with connected:
        try:
            yield connected
        except client.TailraceError as error:
            raise GatewayFailed(describe(error, connected.url)) from error


def require_gateway() -> None:
    """Raises GatewayFailed if no gateway answers at the default address. Does not retry: perhaps no gateway runs."""
    with Client(tries_max=0, silence_s=PROBE_S) as probed:
        try:
            probed.request("GET", "/health")
        except client.TailraceError as error:
            if error.status is None:
                raise GatewayFailed(f"{error}: {START}") from error


def describe(error: client.TailraceError, url: str) -> str:
    """Returns what went wrong, at which gateway, and what to do."""
    message = str(error).removesuffix(".")
    text = message if url in message else f"{message} (the gateway at {url})"
    if error.status == HTTPStatus.UNAUTHORIZED:
        return f"{text}; set the key in TAILRACE_KEY"
    return f"{text}: {START}" if error.is_unreachable else text


def report_retry(error: client.TailraceError, tries: int) -> None:
    """Prints why a command waits, but only at the first of several tries."""
    if tries == 1:
        # Overwrites a progress bar.
        start = "\r\x1b[K" if has_cursor(sys.stderr) else ""
        print(f"{start}{make_printable(str(error))}; trying again", file=sys.stderr, flush=True)
