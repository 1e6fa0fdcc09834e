#!/usr/bin/env bash
# Linux resets the connections in the queue of a SO_REUSEPORT socket that is closed, though another one listens on the port.
#
# Guessed:  with SO_REUSEPORT, a process can end while others accept on the same port, and no client notices.
# Version:  Linux 5.14 or newer with `net.ipv4.tcp_migrate_req` at 0, its default (seen with 6.18); Python's socket module.
# Seen:     100 clients connect and send a request; then one of two listeners is closed before it has accepted:
#               SO_REUSEPORT, two sockets:     some reset, the others answered
#               one socket in two processes:   0 reset, 100 answered
#           With SO_REUSEPORT each socket has a queue of its own, and the kernel has put about half of the clients in each.
# Meets:    restarts of one server process after the other on a port: some of the clients that have just connected see
#           ECONNRESET. Let a parent bind and pass one socket to all, or set tcp_migrate_req to 1.
# Tailrace: `tailrace up` listens once, and its gateways inherit the socket (ADR 10).
# Exits non-zero if this changes, and 77 if this system is no Linux or moves such connections.
. "$(dirname "$0")/setup.sh"
[ "$(cat /proc/sys/net/ipv4/tcp_migrate_req 2> /dev/null)" = 0 ] || skip "needs Linux with net.ipv4.tcp_migrate_req = 0"
run_python <<'PYTHON'
import socket

CLIENTS = 100


def listen(address):
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(address)
    listener.listen(CLIENTS)
    return listener


def count(closed, other):
    """Returns how many clients saw a reset and how many an answer, when `closed` ends and `other` goes on."""
    clients = [socket.create_connection(other.getsockname()) for _ in range(CLIENTS)]
    for client in clients:
        client.sendall(b"request")
    closed.close()
    other.settimeout(1)
    accepted = []
    try:
        while True:
            connection, _ = other.accept()
            connection.sendall(b"answer")
            accepted.append(connection)
    except TimeoutError:
        pass
    resets = 0
    for client in clients:
        try:
            client.recv(100)
        except ConnectionResetError:
            resets += 1
    return resets, len(accepted)


first = listen(("127.0.0.1", 0))
own = count(first, listen(first.getsockname()))
one = listen(("127.0.0.1", 0))
shared = count(one.dup(), one)  # a duplicate, as the processes of one parent have it
print("SO_REUSEPORT, two sockets:    {} reset, {} answered".format(*own))
print("one socket in two processes:  {} reset, {} answered".format(*shared))
assert own[0] > 10 and sum(own) == CLIENTS and shared == (0, CLIENTS), (own, shared)
PYTHON
