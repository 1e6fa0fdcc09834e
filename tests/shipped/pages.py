"""The commands of a page of docs/, in the order in which a reader of the page runs them."""

import re
import textwrap

from tests.harness.processes import CHECKOUT

# The only places where a run differs from a page: text of the page, and its replacement.
SUBSTITUTIONS = {
    "SYSTEMD.md": {
        # "If the file is empty, a simulated Claude answers."
        "echo ANTHROPIC_API_KEY=… >": ": >",
        # One machine instead of three (NATS.md names this number).
        # The version that is installed first is that before `--new`, whose `streams` creates all.
        "--new --replicas 3 --gib 10": "--replicas 1 --gib 1",
    },
    "NATS.md": {
        # One server without TLS, as the page says for one machine.
        "--tls /etc/tailrace/tls ": "",
        "--gib 10 \\\n  --server nats-1.internal --server nats-2.internal --server nats-3.internal": (
            "--gib 1 --server localhost"
        ),
    },
    "CONTAINERS.md": {
        "up --build": "up --build --detach",
        # The version that is installed first is that before `--new`, whose `streams` creates all.
        "streams --new": "streams",
        "docker compose …": "docker compose -f deploy/container/compose.yaml",
    },
}
BLOCK = re.compile(r"^( *)```sh\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


class Page:
    """The `sh` blocks of a page by heading. `unused` has the substitutions that no block of the page needs."""

    def __init__(self, name: str) -> None:
        self.text = (CHECKOUT / "docs" / name).read_text()
        self.blocks: dict[str, list[str]] = {}
        self.unused = set(SUBSTITUTIONS[name])
        for section in re.split(r"^## ", f"## \n{self.text}", flags=re.MULTILINE):
            heading, _, body = section.partition("\n")
            self.blocks[heading] = [self._substitute(name, textwrap.dedent(found[2])) for found in BLOCK.finditer(body)]

    def _substitute(self, name: str, block: str) -> str:
        for old, new in SUBSTITUTIONS[name].items():
            if old in block:
                self.unused.discard(old)
                block = block.replace(old, new)
        return block
