"""Why `up` does not start, or gives up; each is one sentence that says what to do next, never a traceback."""

from tailrace.proto.errors import TailraceError


class UpRefused(TailraceError):
    """Nothing was started, or all of it was stopped again. The message is for the person at the terminal."""
