"""What prevents a connection to a model, found under a library's error (R135)."""

import errno
import socket

import pytest

from tailrace.generators.backends.obstacle import find_obstacle


def wrapped(cause: Exception) -> Exception:
    """Returns an error of a library, raised from `cause`."""
    outer = RuntimeError("All connection attempts failed at secret-host.internal")
    outer.__cause__ = cause
    return outer


@pytest.mark.rule("R135")
@pytest.mark.parametrize(
    ("error", "obstacle"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "no such host"),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure"), "DNS does not answer"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), "connection refused"),
        (OSError(errno.ENETUNREACH, "unreachable"), "network unreachable"),
        (OSError(errno.EHOSTUNREACH, "unreachable"), "host unreachable"),
        # The call may have been sent: it would be paid for twice.
        (ConnectionResetError(errno.ECONNRESET, "reset"), ""),
        # It would not be another certificate a few seconds later.
        (OSError("certificate verify failed"), ""),
        (ValueError("other"), ""),
    ],
)
def test_an_obstacle_is_named_without_hosts_and_only_if_the_call_was_not_sent(error: Exception, obstacle: str) -> None:
    assert find_obstacle(wrapped(error)) == obstacle


def test_a_library_error_without_a_cause_has_no_obstacle() -> None:
    assert find_obstacle(RuntimeError("no cause")) == find_obstacle(None) == ""
