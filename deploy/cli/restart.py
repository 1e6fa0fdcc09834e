"""`tailrace restart`: restarts the processes of a running `tailrace up`, or changes their numbers."""

import argparse
import sys
import time
from collections.abc import Mapping

from tailrace.deploy.cli.arguments import add_data, add_json, number
from tailrace.deploy.cli.result import print_result
from tailrace.deploy.local import rolling_restart, running
from tailrace.deploy.local.status_file import Restart
from tailrace.proto.version import VERSION

DESCRIPTION = (
    "Restart the processes of a running `up` one after the other, on the version that is installed; or change the"
    " numbers of its generators and gateways."
)
EXAMPLES = """\
examples:
  pip install ./tailrace-0.2.0-py3-none-any.whl && tailrace restart
  tailrace restart --generators 4 --gateways 2     only start the missing processes, and stop those too many

Without numbers, all processes are restarted. No request is refused, streams resume at another gateway, and each
generator finishes its turns before it ends, which may take as long as the longest turn (TAILRACE_GRACE_S ends it
earlier; others then continue the turns). Settings are those with which `up` was started. `up` itself, nats-server and
the simulated Claude are not restarted.

With numbers, no process is restarted: new ones start, and when all of them are ready, those that are too many finish
their work and stop. If a new one does not start, no number changes. Later restarts keep the numbers; the next start of
`up` has those of its own options, so change these as well.
"""
# The work that a process of each role completes before it ends.
WAITS_FOR = {
    "persistence": "it stores what it has read",
    "generator": "it finishes its turns, which `tailrace top` shows",
    "gateway": "its readers resume at another gateway",
}
STARTING = "the others continue until they are ready"
STOPPING = "each one finishes what it runs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser, "print JSON, in one line, at the end; the progress is on the standard error")
    for role, about in (("generators", "call the model"), ("gateways", "serve HTTP")):
        kind = number("count", 1, 64)
        parser.add_argument(
            f"--{role}", type=kind, metavar="N", help=f"processes that {about} (default: as many as run)"
        )
    add_data(parser, "data directory of the running `up`, to be named if several run")


def run(args: argparse.Namespace, _: Mapping[str, str]) -> int:
    """Restarts or scales the processes, and prints each in its turn. Raises SettingsInvalid, UpRefused."""
    running.require_named(args.data)
    started = time.monotonic()
    done: dict[str, list[str]] = {"restarting": [], "starting": [], "stopping": []}

    def show(now: Restart, waited_s: float) -> None:
        name, what = now.now, WAITS_FOR[now.now.partition("-")[0]]
        if now.action == "starting":
            what = STARTING
        elif ", " in name:
            what = STOPPING
        text = f"waiting for {name} for {waited_s:.0f} s: {what}" if waited_s else f"{now.action} {name} ({what})"
        print(text, file=sys.stderr if args.json else sys.stdout, flush=True)
        if not waited_s:
            done[now.action].extend(name.split(", "))

    request = rolling_restart.Request(args.generators, args.gateways, VERSION)
    status = rolling_restart.restart(args.data, show, request)
    seconds = time.monotonic() - started
    what = "all processes run again"
    if args.generators or args.gateways:
        names = [one.name for one in status.processes]
        counts = [sum(name.startswith(f"{role}-") for name in names) for role in ("generator", "gateway")]
        what = "generators: {}, gateways: {}".format(*counts)
    text = f"{what}, after {seconds:.1f} s"
    print_result(
        args,
        text,
        restarted=done["restarting"],
        started=done["starting"],
        stopped=done["stopping"],
        seconds=round(seconds, 1),
    )
    return 0
