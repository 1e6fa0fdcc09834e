"""A full disk under `up`: it is reported, stored turns stay readable, and it recovers when there is space."""

import re
from pathlib import Path
from signal import SIGTERM

import httpx2
import pytest

from tailrace.deploy.cli.status import fetch
from tailrace.deploy.local.readiness import Response
from tailrace.deploy.local.watch import is_stuck
from tests.harness.disk import MIB, fill, needs_mount, small_disk
from tests.harness.generator_in_loop import words
from tests.harness.until import until
from tests.harness.up import LEAN, START_S_MAX, STOP_S_MAX, running

SIZE = 64 * MIB
WORDS = words(20)
CAUSE_AND_SYMPTOM = r"the disk has 0 MiB left, and \d+ are kept for running turns; nothing has been stored for "


def test_only_a_failed_write_needs_a_restart_of_the_server() -> None:
    """A server that starts or has no leader recovers by itself."""
    failed = "JetStream stream '$G > TURNS' write error: write 3.blk: no space left on device"
    assert is_stuck(Response(503, failed))
    assert is_stuck(Response(503, '{"status":"unavailable","error":"JetStream not enabled (10076)"}'))
    assert not is_stuck(Response(503, "JetStream has not established contact with a meta leader"))
    assert not is_stuck(Response(200, "ok"))
    assert not is_stuck(Response(0, ""))


def is_nearly_full(metrics: httpx2.Response) -> bool:
    """Whether the gauges are such that the alert DiskNearlyFull fires."""
    free, reserve = (
        float(re.findall(rf"^tailrace_gateway_disk_{name}_bytes (\S+)$", metrics.text, re.MULTILINE)[0])
        for name in ("free", "reserve")
    )
    return free < 2 * reserve


async def store_answer(client: httpx2.AsyncClient) -> str:
    """Posts a turn and reads its answer, WORDS; returns the path of its text."""
    accepted = (await client.post("/v1/turns", json={"message": "#sim words=20 rate=0"})).json()
    path = f"/v1/turns/{accepted['turn']}/events?dialect=text"
    assert (await client.get(path)).text == WORDS
    return path


@pytest.mark.rule("F16")
@needs_mount
@pytest.mark.timeout(120)
async def test_a_full_disk_is_reported_and_recovers_when_there_is_space(tmp_path: Path) -> None:
    """Reported within 10 seconds, with 503 for POSTs; ready 20 seconds after there is space."""
    there = tmp_path / "data"
    there.mkdir(mode=0o700)
    with small_disk(there, SIZE), running(tmp_path, *LEAN) as up:
        async with httpx2.AsyncClient(base_url=await up.ready(), trust_env=False, timeout=20) as client:
            path = await store_answer(client)
            assert not is_nearly_full(await client.get("/metrics"))
            fill(there)

            async def try_post() -> tuple[int, str]:
                answer = await client.post("/v1/turns", json={"message": "#sim words=3 rate=0"})
                return answer.status_code, answer.json().get("error", {}).get("code", "")

            # Turns that fit into the last block of a file are still stored.
            refused = await until(lambda: is_refused(try_post()), 30)
            assert refused in ((503, "log_unavailable"), (503, "log_full"))

            async def is_reported() -> bool:
                parts = (await client.get("/readyz")).json()
                return re.match(CAUSE_AND_SYMPTOM, str(parts["log"]["detail"])) is not None

            await until(is_reported, 10)
            assert is_nearly_full(await client.get("/metrics"))
            shown = await fetch(there, {})
            # Persistence is a problem, too, if it had not recorded the answer before.
            problems = {problem.name: problem.text for problem in shown.problems}
            assert not shown.ok
            assert re.match(f"not ready: {CAUSE_AND_SYMPTOM}", problems["log"])
            assert (await client.get("/healthz")).status_code == 200
            assert (await client.get(path)).text == WORDS
            (there / "junk").unlink()

            async def is_ready() -> bool:
                return (await client.get("/readyz")).status_code == 200

            await until(is_ready, 20)
            again = (await client.post("/v1/turns", json={"message": "#sim words=5 rate=0 tag=n"})).json()
            assert (await client.get(f"/v1/turns/{again['turn']}/events?dialect=text")).text == words(5, "n")
            assert (await client.get(path)).text == WORDS
        reports = re.findall(r"^up +\| nats-server stopped storing after a failed write; ", up.text, re.MULTILINE)
        assert len(reports) == 1


@pytest.mark.rule("F16")
@needs_mount
@pytest.mark.timeout(120)
async def test_up_starts_on_a_disk_that_is_nearly_full(tmp_path: Path) -> None:
    """It says what is not ready, stored turns can be read, and it prints `ready` when there is space."""
    there = tmp_path / "data"
    there.mkdir(mode=0o700)
    with small_disk(there, SIZE):
        with running(tmp_path, *LEAN) as up:
            async with httpx2.AsyncClient(base_url=await up.ready(), trust_env=False, timeout=20) as client:
                path = await store_answer(client)
            up.process.send_signal(SIGTERM)
            assert up.process.wait(STOP_S_MAX) == 0
        fill(there, free_bytes=MIB // 4)
        with running(tmp_path, *LEAN) as up:
            reported = "not ready: log: the disk has 0 MiB left"
            await until(lambda: re.search(rf"^up +\| {reported}", up.text, re.MULTILINE), START_S_MAX)
            url = re.search(r"Open this page: +(http://[^/]+)/", up.text)
            assert url is not None
            async with httpx2.AsyncClient(base_url=url[1], trust_env=False, timeout=20) as client:
                assert (await client.get(path)).text == WORDS
                assert (await client.post("/v1/turns", json={"message": "#sim"})).json()["error"]["code"] == "log_full"
                assert not up.find_line("ready http://")
                (there / "junk").unlink()
                await up.ready()
                assert (await client.post("/v1/turns", json={"message": "#sim words=1"})).status_code == 202


async def is_refused(posting: object) -> tuple[int, str] | None:
    status, code = await posting  # type: ignore[misc]
    return (status, code) if status != 202 else None
