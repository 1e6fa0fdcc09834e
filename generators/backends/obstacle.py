"""Names the obstacle to a connection to a model, from the errors of the operating system under a library's error."""

import errno
import socket

TEXTS = {
    errno.ECONNREFUSED: "connection refused",
    errno.ENETUNREACH: "network unreachable",
    errno.ENETDOWN: "network unreachable",
    errno.EHOSTUNREACH: "host unreachable",
}
# The error of aiohttp's connector (aiohappyeyeballs) when the addresses of a host fail in different ways.
SEVERAL = "Multiple exceptions: [Errno"


def find_obstacle(error: BaseException | None) -> str:
    """Returns the obstacle of the connection, without names: `no such host`. Empty if a later call would fail, too, or
    if the call may have been sent. No turn waits for a certificate or a proxy that refuses.
    """
    while error is not None:
        match error:
            case socket.gaierror():
                return "no such host" if error.errno != socket.EAI_AGAIN else "DNS does not answer"
            case OSError(errno=number) if number in TEXTS:
                return TEXTS[number]
            case OSError() if str(error).startswith(SEVERAL):
                return "no address accepts a connection"
        error = error.__cause__ or error.__context__
    return ""
