"""`tailrace restart`: restarts the processes of a running `tailrace up` on the installed version."""

import argparse
import time
from collections.abc import Mapping

from tailrace.deploy.cli.arguments import add_data
from tailrace.deploy.local import rolling_restart

DESCRIPTION = "Restart the processes of a running `up` one after the other, on the version that is installed."
EXAMPLES = """\
example:
  pip install ./tailrace-0.2.0-py3-none-any.whl && tailrace restart

No request is refused, streams resume at another gateway, and each generator finishes its turns before it ends, which
may take as long as the longest turn (TAILRACE_GRACE_S ends it earlier; others then continue the turns). Settings are
those with which `up` was started. `up` itself, nats-server and the simulated Claude are not restarted.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data(parser)


def run(given: argparse.Namespace, _: Mapping[str, str]) -> int:
    started = time.monotonic()
    rolling_restart.restart(given.data, lambda name: print(f"restarting {name}", flush=True))
    print(f"all processes run again, after {time.monotonic() - started:.1f} s")
    return 0
