"""The `tailrace` command: `python -m tailrace` and the console script."""

import sys

from tailrace.proto.exit_status import EXIT_INTERRUPTED


def main() -> int:
    """Runs the command. Ctrl-C during its imports ends it without a traceback."""
    try:
        from tailrace.deploy.cli.main import main as run  # noqa: PLC0415  # see above
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return run()


if __name__ == "__main__":
    sys.exit(main())
