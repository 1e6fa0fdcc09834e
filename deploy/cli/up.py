"""`tailrace up`: starts the whole system on this machine."""

import argparse
from collections.abc import Mapping

from tailrace.deploy.cli.arguments import add_address, add_data, add_number
from tailrace.deploy.local import up
from tailrace.deploy.local.options import SYNCS, Options

DESCRIPTION = "Start the whole system on this machine and keep it running."
EXAMPLES = """\
examples:
  tailrace up                          start on http://127.0.0.1:8000
  ANTHROPIC_API_KEY=… tailrace up      answers from Claude; without a key from a simulated Claude, free of charge
  tailrace up --port 0                 use a free port; the line `ready http://…` shows which
  tailrace up --generators 4           four processes call the model
  tailrace up --cluster                three nats-servers with a copy of the log each; any one of them may fail
  tailrace up --data try --port 8001   start a second, separate system

It runs nats-server, one persistence process, the generators and the gateways, and restarts any of them that ends.
Ctrl-C stops all of them in order; a second Ctrl-C kills them. SIGTERM also stops them, and so does SIGHUP, which a
terminal sends when it is closed, unless `nohup` has started `up`.

Settings are in a file that `tailrace init` writes, or in environment variables (`tailrace explain settings`), which are
passed to all processes. `up` itself chooses the addresses. With TAILRACE_METRICS_PORT=9100 the metrics of persistence
are on port 9100, those of the gateways on 9101 and following, those of the generators on 9201 and following; without
it, free ports are used and printed.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add, default = parser.add_argument, Options()
    add_address(parser)
    add_data(parser, "data directory", finds_running=False)
    add_number(parser, "--generators", default.generators, "processes that call the model", 1, 64)
    add_number(parser, "--gateways", default.gateways, "processes that serve HTTP", 1, 64)
    add("--cluster", action="store_true", help="run three nats-servers, with a copy of the log each")
    add(
        "--new",
        action="store_true",
        help="create a new log beside a database that has recorded another one, which is lost",
    )
    add(
        "--sync",
        choices=SYNCS,
        default=default.sync,
        help="what a power cut may lose: nothing that was acknowledged (always), the last second (1s), or the last"
        " two minutes (default: that of NATS). A crash of a process loses nothing in any case (default: %(default)s)",
    )


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Runs the system until a signal; returns 0. Raises SettingsInvalid, UpRefused, LogError."""
    options = Options(
        host=args.host,
        port=args.port,
        data_dir=args.data.resolve(),
        generators=args.generators,
        gateways=args.gateways,
        cluster=args.cluster,
        sync=args.sync,
        is_new=args.new,
    )
    return up.run(options, environ)
