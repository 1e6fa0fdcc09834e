"""The error of `tailrace up`: one sentence that says what is wrong and what to do."""

from tailrace.proto.errors import TailraceError


class UpRefused(TailraceError):
    """`up` did not start, or stopped everything again. The message is shown without a traceback."""
