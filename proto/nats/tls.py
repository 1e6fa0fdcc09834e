"""TLS to NATS, as its URL asks for it: `tls://HOST:PORT?ca=FILE&cert=FILE&key=FILE`. It opens no connection."""

import ssl
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import nats.errors

from tailrace.proto.errors import SettingsInvalid
from tailrace.proto.nats.client import Client

FILES = ("ca", "cert", "key")


def ssl_context(addresses: Sequence[str]) -> ssl.SSLContext | None:
    """How certificates are judged, and which is ours; None where no address begins with `tls://`.

    Without `ca` it is whom the machine trusts. Raises SettingsInvalid for files that cannot be used.
    """
    asked = [urlsplit(address) for address in addresses]
    given = {name: value for one in asked for name, value in parse_qsl(one.query, keep_blank_values=True)}
    if not any(one.scheme == "tls" for one in asked):
        if given:
            raise SettingsInvalid("TAILRACE_NATS_URL: certificates are for addresses that begin with tls://")
        return None
    if strange := sorted(given.keys() - FILES):
        raise SettingsInvalid(f"TAILRACE_NATS_URL: {strange[0]} is none of ca, cert, key")
    if ("cert" in given) != ("key" in given):
        raise SettingsInvalid("TAILRACE_NATS_URL: cert and key are given together")
    try:
        context = ssl.create_default_context(cafile=given.get("ca"))
        if "cert" in given:
            context.load_cert_chain(given["cert"], given["key"])
    except OSError as error:
        # Also what is no certificate, or not that key's.
        raise SettingsInvalid(f"TAILRACE_NATS_URL: the files after `?` cannot be used: {error}") from error
    return context


class TlsClient(Client):
    """nats-py believes a server, or whoever stands between, that says that it has no TLS, and sends it the password."""

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        if initial_connection and not info.get("tls_required"):
            raise nats.errors.Error("nats: the server has no TLS")
        await super()._process_info(info, initial_connection)
