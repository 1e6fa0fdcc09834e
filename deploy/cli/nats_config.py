"""`tailrace nats-config`: writes configurations for one or three nats-servers and the environment of each process."""

import argparse
import re
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tailrace.deploy.cli.arguments import add_json, add_number
from tailrace.deploy.cli.result import print_result
from tailrace.deploy.local.data_dir import write_private
from tailrace.deploy.local.nats_server import (
    GIB,
    LAME_DUCK,
    PAYLOAD_BYTES_MAX,
    PENDING_BYTES_MAX,
    ROUTES,
    accounts,
    is_of_single_server,
    render,
)
from tailrace.deploy.nats.permissions import RIGHTS
from tailrace.proto.runtime.exit_status import EXIT_ERROR, EXIT_USAGE
from tailrace.proto.runtime.ip_address import is_loopback

DESCRIPTION = "Write whole configurations of nats-server, and the environment of each process of Tailrace."
EXAMPLES = """\
examples:
  tailrace nats-config nats --server nats.internal                one server, without TLS
  tailrace nats-config nats --tls /etc/tailrace/tls --server nats-1.internal --server nats-2.internal \\
    --server nats-3.internal                                      three servers; any one may fail

The folder gets one configuration for each server (nats-1.conf …), and gateway.env, generators.env, persistence.env and
admin.env with the TAILRACE_NATS_URL of each process. The passwords are new. docs/NATS.md has the next steps.
"""
PORT = 4222
# Offsets from the port for clients (4222) to the ports for other servers (6222) and monitoring (8222).
TO_CLUSTER, TO_MONITORING = 2000, 4000
PORT_MAX = 65535 - TO_MONITORING
EVERY_ADDRESS = "0.0.0.0"  # noqa: S104  # servers and processes on other machines connect, with passwords
HOST = re.compile(r"([a-zA-Z0-9]([a-zA-Z0-9.-]*[a-zA-Z0-9])?|\[[0-9a-fA-F:]+\])(?::([1-9][0-9]{0,4}))?")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="a new folder")
    add(
        "--server",
        type=nats_address,
        action="append",
        required=True,
        metavar="HOST[:PORT]",
        help="address of a server; give it once or three times (default port: 4222; port + 2000 for the other servers)",
    )
    add(
        "--tls",
        type=absolute_path,
        metavar="DIR",
        help="use TLS: folder of ca.pem, cert.pem and key.pem on each machine",
    )
    add(
        "--store",
        type=absolute_path,
        default=Path("/var/lib/nats"),
        metavar="DIR",
        help="folder of the log (default: %(default)s)",
    )
    add_json(parser)
    add_number(parser, "--gib", 10, "storage a server, GiB", 1, 65536, "size")


def run(args: argparse.Namespace, _: Mapping[str, str]) -> int:
    """Writes the files into a new folder and prints their paths.

    Returns EXIT_USAGE unless one or three different servers are named, EXIT_ERROR if the folder cannot be written or
    the store has the log of a single server.
    """
    if len(args.server) not in (1, 3) or len(set(args.server)) < len(args.server):
        print("tailrace: name one server, or three different ones", file=sys.stderr)
        return EXIT_USAGE
    if len(args.server) > 1 and is_of_single_server(args.store):
        print(
            f"tailrace: {args.store} has the log of a single nats-server, which a cluster deletes within 30 s: name a "
            "new folder with --store, and copy the log into it (docs/ONE_TO_THREE.md)",
            file=sys.stderr,
        )
        return EXIT_ERROR
    try:
        written = write(args.folder, args.server, args.tls, args.store, args.gib)
    except OSError as error:
        print(f"tailrace: cannot make {args.folder} ({error.strerror}): name a new folder", file=sys.stderr)
        return EXIT_ERROR
    print_result(args, "\n".join(map(str, written)), files=written)
    if args.tls is None and not all(server.is_loopback for server in args.server):
        print("warning: without --tls, passwords and answers cross the network in plain text", file=sys.stderr)
    return 0


class Server(NamedTuple):
    """The address of one nats-server, for processes and for the other servers."""

    host: str
    port: int = PORT

    def url(self, scheme: str, port: int, user: str) -> str:
        return f"{scheme}://{user}@{self.host}:{port}"

    @property
    def is_loopback(self) -> bool:
        return is_loopback(self.host.strip("[]"))

    def listen(self, port: int) -> str:
        """Returns the address to listen on: a loopback host itself, otherwise all addresses of the machine.

        The machine itself may be unable to resolve `host`.
        """
        return f"{self.host if self.is_loopback else EVERY_ADDRESS}:{port}"


def nats_address(text: str) -> Server:
    """argparse type: HOST or HOST:PORT."""
    found = HOST.fullmatch(text)
    server = Server(found[1], int(found[3] or PORT)) if found else None
    if server is None or server.port > PORT_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST or HOST:PORT, with a port up to {PORT_MAX}")
    return server


def absolute_path(text: str) -> Path:
    """argparse type: a path on each machine. A relative path would depend on where each process is started."""
    if not Path(text).is_absolute():
        raise argparse.ArgumentTypeError(f"{text!r} is not an absolute path")
    return Path(text)


def write(folder: Path, servers: Sequence[Server], tls: Path | None, store: Path, gib: int) -> list[Path]:
    """Writes the files into a new folder, with new passwords; returns their paths. Raises FileExistsError.

    `tls` is the folder of ca.pem, cert.pem and key.pem on each machine. `store` is the directory of the log on each
    server.
    """
    folder.mkdir(mode=0o700)
    passwords = {user: new_password() for user in RIGHTS}
    route_password = new_password()
    texts = {
        f"nats-{number}.conf": render(config(number, servers, passwords, route_password, tls, store, gib))
        for number in range(1, len(servers) + 1)
    }
    for user, password in passwords.items():
        texts[f"{user}.env"] = f"TAILRACE_NATS_URL={nats_url(servers, f'{user}:{password}', tls)}\n"
    for name, text in texts.items():
        write_private(folder / name, text)
    return [folder / name for name in texts]


def new_password() -> str:
    """Returns a password. The password begins with a letter, because nats-server may read a variable with digits as a
    number."""
    return f"p{secrets.token_hex(24)}"


def nats_url(servers: Sequence[Server], user: str, tls: Path | None) -> str:
    scheme, query = ("tls", f"?ca={tls / 'ca.pem'}") if tls else ("nats", "")
    return ",".join(f"{server.url(scheme, server.port, user)}{query}" for server in servers)


def config(
    number: int,
    servers: Sequence[Server],
    passwords: dict[str, str],
    route_password: str,
    tls: Path | None,
    store: Path,
    gib: int,
) -> dict[str, Any]:
    """Returns the configuration of the server `number`, counted from 1."""
    own = servers[number - 1]
    settings: dict[str, Any] = {
        "server_name": f"nats-{number}",
        "listen": own.listen(own.port),
        "http": f"127.0.0.1:{own.port + TO_MONITORING}",
        "max_payload": PAYLOAD_BYTES_MAX,
        "max_pending": PENDING_BYTES_MAX,
        # `always`: an acknowledged entry is on the disk (docs/adr/0009-sync-every-write-to-disk.md).
        "jetstream": {"store_dir": str(store), "sync_interval": "always", "max_file_store": gib * GIB},
        **LAME_DUCK,
        "accounts": accounts(passwords),
    }
    if tls:
        settings["tls"] = tls_files(tls)
    if len(servers) > 1:
        scheme = "tls" if tls else "nats"
        settings["cluster"] = {
            "name": "tailrace",
            "listen": own.listen(own.port + TO_CLUSTER),
            "authorization": {"user": "tailrace", "password": route_password},
            # Clients know all servers from their URLs. An advertised address would be wrong behind NAT.
            "no_advertise": True,
            "routes": [
                other.url(scheme, other.port + TO_CLUSTER, f"tailrace:{route_password}")
                for other in servers
                if other is not own
            ],
            **ROUTES,
        } | ({"tls": tls_files(tls)} if tls else {})
    return settings


def tls_files(folder: Path) -> dict[str, Any]:
    return {name: str(folder / f"{name.removesuffix('_file')}.pem") for name in ("cert_file", "key_file", "ca_file")}
