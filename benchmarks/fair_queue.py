"""Time to first token beside a tenant with many turns: `python -m benchmarks.fair_queue --tenants 10`.

Starts `tailrace up` with its default settings. One tenant submits `--turns` turns of `--seconds` seconds at once. Then
`--tenants` other tenants submit turns of one word, and wait for this word. The same is measured before, without
the many turns.
"""

import asyncio
import hashlib
import os
import tempfile
import time
from itertools import chain
from pathlib import Path
from statistics import median

import httpx2

from benchmarks.command_line import count, new_parser
from benchmarks.large_bodies import first_word_s
from benchmarks.latencies import percentile
from tailrace import AsyncClient
from tests.harness.up import running

# Turns of the other tenants together, if they are few.
TURNS_MIN = 100
AT_ONCE = 32
LOUD = "loud"


def key_of(tenant: str) -> str:
    return f"key-{tenant}"


def headers_of(tenant: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key_of(tenant)}"}


async def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--tenants", type=count, default=10)
    parser.add_argument("--turns", type=count, default=300)
    parser.add_argument("--seconds", type=count, default=30)
    parser.add_argument("--spread", type=float, default=10.0, help="the other tenants begin over so many seconds")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of Tailrace")
    options = parser.parse_args()
    if wrong := [pair for pair in options.set if "=" not in pair]:
        parser.error(f"not NAME=VALUE: {', '.join(wrong)}")
    others = [f"other-{number}" for number in range(options.tenants)]
    pairs = ",".join(f"{name}:{hashlib.sha256(key_of(name).encode()).hexdigest()}" for name in (LOUD, *others))
    settings = dict(pair.split("=", 1) for pair in options.set)
    with (
        tempfile.TemporaryDirectory() as folder,
        running(Path(folder), "--port", "0", TAILRACE_API_KEYS=pairs, **settings) as up,
    ):
        limits = httpx2.Limits(max_connections=2 * AT_ONCE + len(others))
        async with httpx2.AsyncClient(base_url=await up.ready(), trust_env=False, timeout=300, limits=limits) as client:
            alone = await measure(client, others, options.spread)
            begun = time.perf_counter()
            refused = await submit(client, options.turns, options.seconds)
            submitted_s = time.perf_counter() - begun
            beside = await measure(client, others, options.spread)
    print(
        f"{options.turns} turns of {options.seconds} s by one tenant, submitted in {submitted_s:.1f} s, "
        f"{refused} refused; {len(others)} other tenants, {len(beside)} turns; load {os.getloadavg()[0]:.1f}"
    )
    for name, times in (("alone", alone), ("beside", beside)):
        print(
            f"first token {name:6}  p50 {median(times):6.3f} s  p99 {percentile(times, 99):6.3f} s  "
            f"max {max(times):6.3f} s"
        )


async def submit(client: httpx2.AsyncClient, turns: int, seconds: int) -> int:
    """Submits the loud tenant's turns; returns how many were refused."""
    at_once = asyncio.Semaphore(AT_ONCE)

    async def post() -> int:
        async with at_once:
            answer = await client.post(
                "/v1/turns", json={"message": f"#sim words={2 * seconds} rate=2"}, headers=headers_of(LOUD)
            )
            return answer.status_code

    statuses = await asyncio.gather(*(post() for _ in range(turns)))
    return sum(status != 202 for status in statuses)


async def measure(client: httpx2.AsyncClient, tenants: list[str], spread_s: float) -> list[float]:
    """Returns the seconds until the first word of each turn. The tenants begin one after the other."""
    each = -(-TURNS_MIN // len(tenants))

    async def ask(number: int, tenant: str) -> list[float]:
        await asyncio.sleep(spread_s * number / len(tenants))
        asking = AsyncClient(str(client.base_url), key_of(tenant), tries_max=0, http=client)
        return [await first_word_s(asking) for _ in range(each)]

    return sorted(chain.from_iterable(await asyncio.gather(*(ask(*one) for one in enumerate(tenants)))))


if __name__ == "__main__":
    asyncio.run(main())
