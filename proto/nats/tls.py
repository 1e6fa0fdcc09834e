"""TLS to NATS, configured by its URL: `tls://HOST:PORT?ca=FILE&cert=FILE&key=FILE`."""

import ssl
from collections.abc import Sequence
from urllib.parse import parse_qsl, urlsplit

from tailrace.proto.errors import SettingsInvalid

FILES = ("ca", "cert", "key")


def ssl_context(addresses: Sequence[str]) -> ssl.SSLContext | None:
    """Returns the TLS context for `addresses`, or None if none begins with `tls://`.

    Without `ca`, the system's certificate authorities are trusted. Raises SettingsInvalid for unusable files.
    """
    urls = [urlsplit(address) for address in addresses]
    given = {name: value for url in urls for name, value in parse_qsl(url.query, keep_blank_values=True)}
    if not any(url.scheme == "tls" for url in urls):
        if given:
            raise SettingsInvalid("TAILRACE_NATS_URL: ca, cert and key need an address that begins with tls://")
        return None
    if unknown := sorted(given.keys() - FILES):
        raise SettingsInvalid(f"TAILRACE_NATS_URL: the parameter {unknown[0]} is unknown; use ca, cert and key")
    if ("cert" in given) != ("key" in given):
        raise SettingsInvalid("TAILRACE_NATS_URL: cert and key must be given together")
    for name, path in given.items():
        try:
            with open(path, "rb"):  # noqa: PTH123  # an empty path is the working directory for Path
                pass
        except OSError as error:
            raise SettingsInvalid(f"TAILRACE_NATS_URL: {name}={path} cannot be read: {error.strerror}") from error
    try:
        used = "ca"
        context = ssl.create_default_context(cafile=given.get("ca"))
        if "cert" in given:
            used = "cert and key"
            context.load_cert_chain(given["cert"], given["key"])
    except OSError as error:
        # Includes ssl.SSLError: not a certificate, or not the certificate of the key.
        raise SettingsInvalid(f"TAILRACE_NATS_URL: {used} cannot be used: {error}") from error
    return context
