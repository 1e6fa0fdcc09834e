"""Certificates of servers in tests."""

import subprocess
from pathlib import Path


def make_self_signed(folder: Path, host: str) -> tuple[Path, Path]:
    """Writes a self-signed certificate of `host` into `folder`. Returns its file, and that of its key."""
    made = folder / "certificate.pem", folder / "key.pem"
    command = f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN={host}"
    names = ["-addext", f"subjectAltName=DNS:{host}", "-out", str(made[0]), "-keyout", str(made[1])]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    return made
