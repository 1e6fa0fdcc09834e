"""The `tailrace` command: `python -m tailrace` and the console script."""

import signal
import sys
from typing import NoReturn

from tailrace.proto.runtime.exit_status import EXIT_INTERRUPTED


class TerminationSignal(SystemExit):
    """SIGTERM or SIGHUP, which end a command. As an exception, so that it removes its unfinished files before."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


def main() -> int:
    """Runs the command. Ctrl-C during its imports ends it without a traceback."""
    try:
        from tailrace.deploy.cli.main import main as run  # noqa: PLC0415  # see above
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    for number in (signal.SIGTERM, signal.SIGHUP):
        # `nohup` ignores SIGHUP for what it starts.
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, terminate)
    try:
        return run()
    except TerminationSignal as by:
        # systemd takes the end by the signal itself for a success, and no exit status.
        signal.raise_signal(by.number)
        raise


def terminate(number: int, _: object) -> NoReturn:
    """Handles a signal: the second one ends the process at once."""
    signal.signal(number, signal.SIG_DFL)
    raise TerminationSignal(number)


if __name__ == "__main__":
    sys.exit(main())
