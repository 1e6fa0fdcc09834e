"""The error of a process that cannot listen on its address."""

import errno

from tailrace.proto.errors import AddressInUse, SettingsInvalid, TailraceError


def listen_error(setting: str, host: str, port: int, error: OSError) -> TailraceError:
    """Returns AddressInUse if another program uses the port, else SettingsInvalid. `setting` is the variable."""
    if error.errno == errno.EADDRINUSE:
        return AddressInUse(
            f"{setting}: port {port} on {host} is in use: stop the program that uses it, or choose another"
        )
    return SettingsInvalid(f"{setting}: cannot listen on {host}:{port}: {error.strerror or error}")
