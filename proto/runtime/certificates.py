"""The certificate authorities that HTTP clients trust."""

import ssl
from collections.abc import Mapping

from tailrace.proto.errors import SettingsInvalid


def require_certificates(environ: Mapping[str, str]) -> None:
    """Raises SettingsInvalid if the file in `SSL_CERT_FILE` cannot be used: httpx2 would raise an OSError later."""
    if not (file := environ.get("SSL_CERT_FILE")):
        return
    try:
        ssl.create_default_context(cafile=file)
    except OSError as error:
        # Includes ssl.SSLError: no certificates.
        raise SettingsInvalid(
            f"SSL_CERT_FILE={file} cannot be used ({error.strerror or error}): "
            "name a PEM file of certificate authorities, or unset it to trust those of the system"
        ) from error
