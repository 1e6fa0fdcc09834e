"""Command line of the simulated Claude; `--help` explains the directives."""

import argparse
import asyncio
import logging
from collections.abc import Sequence
from typing import get_args

from tailrace.deploy.cli.arguments import number
from tailrace.deploy.local.errors import UpRefused
from tailrace.deploy.simulated_claude.directive import HELP
from tailrace.deploy.simulated_claude.server import Server
from tailrace.deploy.simulated_claude.settings import Settings
from tailrace.deploy.simulated_claude.thinking import Behavior
from tailrace.proto.runtime.exit_status import EXIT_ERROR
from tailrace.proto.runtime.malloc import return_large_memory

# uvicorn logs these as errors; here they are simulated faults, or streams that a shutdown closes.
EXPECTED = ("ASGI callable returned without completing", "Cancel %s running task(s)")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the server until a signal. Exits with EXIT_ERROR if its address cannot be bound."""
    parser = argparse.ArgumentParser(
        prog="python -m tailrace.deploy.simulated_claude",
        description="An HTTP server that speaks Anthropic's wire protocol, free of charge.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument(
        "--port", type=number("port", 0, 65535), default=0, help="port to listen on; 0 (default): a free one"
    )
    parser.add_argument("--show-calls", action="store_true", help="record all calls, and show them at GET /_sim/calls")
    parser.add_argument(
        "--thinking",
        choices=get_args(Behavior),
        default="error",
        help="what happens to thinking after a change (default: error, as for new accounts)",
    )
    options = parser.parse_args(argv)
    logging.getLogger("uvicorn.error").addFilter(is_unexpected)
    return_large_memory()
    settings = Settings(thinking=options.thinking)
    try:
        server = Server(options.host, options.port, shows_calls=options.show_calls, settings=settings)
    except UpRefused as error:
        parser.exit(EXIT_ERROR, f"{parser.prog}: {error}\n")
    print(f"simulated Claude {server.url}", flush=True)
    server.run([server.socket])


def is_unexpected(record: logging.LogRecord) -> bool:
    """Returns whether uvicorn's log record is not about a simulated fault or a shutdown."""
    cause = record.exc_info[1] if record.exc_info else None
    return not (str(record.msg).startswith(EXPECTED) or isinstance(cause, asyncio.CancelledError))


if __name__ == "__main__":
    main()
