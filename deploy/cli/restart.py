"""`tailrace restart`: restarts the processes of a running `tailrace up` on the installed version."""

import argparse
import sys
import time
from collections.abc import Mapping

from tailrace.deploy.cli.arguments import add_data, add_json
from tailrace.deploy.cli.result import print_result
from tailrace.deploy.local import rolling_restart, running

DESCRIPTION = "Restart the processes of a running `up` one after the other, on the version that is installed."
EXAMPLES = """\
example:
  pip install ./tailrace-0.2.0-py3-none-any.whl && tailrace restart

No request is refused, streams resume at another gateway, and each generator finishes its turns before it ends, which
may take as long as the longest turn (TAILRACE_GRACE_S ends it earlier; others then continue the turns). Settings are
those with which `up` was started. `up` itself, nats-server and the simulated Claude are not restarted.
"""
# The work that a process of each role completes before it ends.
WAITS_FOR = {
    "persistence": "it stores what it has read",
    "generator": "it finishes its turns, which `tailrace top` shows",
    "gateway": "its readers resume at another gateway",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser, "print JSON, in one line, when all processes run again; the progress is on the standard error")
    add_data(parser)


def run(args: argparse.Namespace, _: Mapping[str, str]) -> int:
    """Restarts all processes and prints each one as it happens. Raises SettingsInvalid, UpRefused."""
    running.require_named(args.data)
    started, restarted = time.monotonic(), list[str]()

    def show(name: str, waited_s: float) -> None:
        what = WAITS_FOR[name.partition("-")[0]]
        text = f"waiting for {name} for {waited_s:.0f} s: {what}" if waited_s else f"restarting {name} ({what})"
        print(text, file=sys.stderr if args.json else sys.stdout, flush=True)
        if not waited_s:
            restarted.append(name)

    rolling_restart.restart(args.data, show)
    seconds = time.monotonic() - started
    text = f"all processes run again, after {seconds:.1f} s"
    print_result(args, text, restarted=restarted, seconds=round(seconds, 1))
    return 0
