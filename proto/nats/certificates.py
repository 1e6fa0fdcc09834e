"""When the certificates of the connection to NATS end."""

import asyncio
import ssl
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from prometheus_client import Gauge

from tailrace.proto.nats.connection import parse_servers

EXPIRY = Gauge(
    "tailrace_nats_certificate_expiry_timestamp_seconds",
    "When the first certificate of the connection to NATS ends; 0 without TLS",
)
CHECK_EVERY_S = 3600.0
HANDSHAKE_S_MAX = 5.0
DEFAULT_PORT = 4222


async def read_expiry(addresses: Sequence[str]) -> datetime | None:
    """Returns when the first certificate ends: of those that the servers present now, and the files `ca` and `cert`.

    An open connection would show the certificate of its start. None without TLS, or if none can be read.
    """
    ends = list[datetime]()
    for url in map(urlsplit, addresses):
        if url.scheme == "tls":
            files = parse_qs(url.query)
            for path in files.get("ca", []) + files.get("cert", []):
                ends += _read_ends(Path(path))
            with suppress(OSError, TimeoutError, ValueError):
                ends.append((await _presented(url.hostname or "", url.port or DEFAULT_PORT)).not_valid_after_utc)
    return min(ends, default=None)


def _read_ends(path: Path) -> Sequence[datetime]:
    with suppress(OSError, ValueError):
        return [one.not_valid_after_utc for one in x509.load_pem_x509_certificates(path.read_bytes())]
    return ()


async def _presented(host: str, port: int) -> x509.Certificate:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Also of a certificate that has ended already. Nothing is sent over this connection.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    async with asyncio.timeout(HANDSHAKE_S_MAX):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            await reader.readline()
            await writer.start_tls(context)
            return x509.load_der_x509_certificate(writer.get_extra_info("ssl_object").getpeercert(binary_form=True))
        finally:
            writer.close()


async def watch(url: str) -> None:
    """Sets the metric every `CHECK_EVERY_S` seconds, forever."""
    while True:
        if expiry := await read_expiry(parse_servers(url)):
            EXPIRY.set(expiry.timestamp())
        await asyncio.sleep(CHECK_EVERY_S)
