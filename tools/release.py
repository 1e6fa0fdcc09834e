"""Builds a release into dist/ and checks it in a clean environment: `make release`.

The wheel, the source archive, the context of the container image, and lists of all packages (SBOM, CycloneDX).
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import httpx2

from tailrace.proto.version import VERSION

ROOT = Path(__file__).parent.parent
DIST = ROOT / "dist"
BIN = Path(sys.executable).parent
NAME = f"tailrace-{VERSION}"
WHEEL = DIST / f"{NAME}-py3-none-any.whl"
# Each list of packages with its lock file.
SBOMS = {"sbom": "locks/product.lock", "image-sbom": "locks/container.lock"}
# What `docker compose -f deploy/container/compose.yaml up --build` reads, besides the wheel.
CONTEXT = (
    *("locks/container.lock", "deploy/container", "deploy/monitoring"),
    *("docs/nats-users.conf", "docs/CONTAINERS.md", "LICENSE"),
)
START_S_MAX = 60


def main() -> int:
    """Builds and checks all files of a release, and prints their SHA-256. Raises SystemExit, CalledProcessError."""
    argparse.ArgumentParser(prog="python -m tools.release", description=__doc__).parse_args()
    shutil.rmtree(DIST, ignore_errors=True)
    run(BIN / "uv", "build", "--quiet", "--out-dir", DIST, ROOT)
    for name, lock in SBOMS.items():
        write_sbom(DIST / f"{NAME}-{name}.cdx.json", ROOT / lock)
    write_context(DIST / f"{NAME}-image.tar.gz")
    with tempfile.TemporaryDirectory() as folder:
        check(Path(folder))
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(DIST.glob(f"{NAME}*"))]
    (DIST / "SHA256SUMS").write_text("".join(sums))
    print("".join(sums), end="")
    return 0


def write_sbom(target: Path, lock: Path) -> None:
    """Writes the packages of a lock file, with their hashes, as CycloneDX; the tool validates what it writes."""
    command: list[str | Path] = [BIN / "cyclonedx-py", "requirements", lock, "--pyproject", ROOT / "pyproject.toml"]
    run(*command, "--mc-type", "application", "--output-reproducible", "-o", target)


def write_context(target: Path) -> None:
    """Writes the wheel and the files of CONTEXT, below one folder, without caches."""
    with tarfile.open(target, "w:gz") as archive:
        for path in (*CONTEXT, f"dist/{WHEEL.name}"):
            archive.add(ROOT / path, f"{NAME}/{path}", filter=for_everybody)


def for_everybody(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Leaves out caches, the passwords of this checkout, and the name of its user."""
    if member.name.endswith(("__pycache__", "/.env")):
        return None
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def check(folder: Path) -> None:
    """Installs the locked packages and the wheel into a new venv, and reads an answer from `tailrace up`."""
    run(sys.executable, "-m", "venv", folder / "venv")
    pip, tailrace = folder / "venv/bin/pip", folder / "venv/bin/tailrace"
    run(pip, "install", "--quiet", "--no-deps", "--require-hashes", "-r", ROOT / "locks/product.lock")
    run(pip, "install", "--quiet", "--no-deps", WHEEL)
    run(pip, "check")
    run(tailrace, "init", folder / "tailrace.toml")
    command: list[str | Path] = [
        tailrace,
        "up",
        "--config",
        folder / "tailrace.toml",
        "--port",
        "0",
        "--data",
        folder / "data",
    ]
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(folder)}
    up = subprocess.Popen(command, cwd=folder, env=environ, stdout=subprocess.PIPE, text=True)
    try:
        url = next((line.split()[-1] for line in up.stdout or () if line.strip().startswith("ready http")), None)
        if url is None:
            raise SystemExit("tailrace up did not start")
        answer = httpx2.post(
            f"{url}/v1/turns",
            json={"message": "Hi.\n#sim words=3"},
            headers={"Accept": "text/event-stream"},
            timeout=START_S_MAX,
            trust_env=False,  # no proxy for this machine
        )
        if "w000002" not in answer.text:
            raise SystemExit("tailrace up did not answer")
    finally:
        up.terminate()
        up.communicate(timeout=START_S_MAX)


def run(*command: str | Path) -> None:
    """Runs a command; raises CalledProcessError if it fails."""
    subprocess.run([str(part) for part in command], check=True)


if __name__ == "__main__":
    sys.exit(main())
