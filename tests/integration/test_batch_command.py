"""`tailrace batch` as a person uses it: a process on a file, killed in the middle and run again."""

import asyncio
import os
import sys
from pathlib import Path
from signal import SIGINT, SIGKILL
from typing import Any, Literal

import msgspec
import pytest

from tailrace.deploy.cli.batch import body_of
from tailrace.deploy.local.spawn import spawn
from tailrace.proto.ids import new_id
from tests.harness.cutting_proxy import Cut, Cutting
from tests.harness.generator_in_loop import words
from tests.harness.processes import CHECKOUT, Process
from tests.harness.system import System
from tests.harness.until import until
from tests.integration.conftest import KEY, Gateway, NewGateway


def written(file: Path, count: int, line: str = "words=2 rate=0") -> Path:
    rows = [
        {"custom_id": f"c{number}", "params": {"message": f"#sim {line} tag=cli{number}x"}} for number in range(count)
    ]
    file.write_bytes(b"\n".join(msgspec.json.encode(row) for row in rows))
    return file


class Command:
    """One run of it; what it says stands in `said`."""

    def __init__(self, gateway: Gateway, folder: Path, *arguments: str) -> None:
        self._said = folder / f"said-{os.urandom(4).hex()}.txt"
        self._arguments = (sys.executable, "-m", "tailrace", "batch", "--url", gateway.url, *arguments)

    async def begin(self) -> None:
        environ = {"PYTHONPATH": str(CHECKOUT), "TAILRACE_KEY": KEY, "NO_PROXY": "127.0.0.1"}
        with self._said.open("wb") as output:
            self.process = await spawn(self._arguments, environ, output.fileno())

    @property
    def said(self) -> str:
        return self._said.read_text()

    async def status(self) -> int:
        return await asyncio.wait_for(self.process.wait(), 40)


async def run(gateway: Gateway, folder: Path, *arguments: str) -> tuple[int, str]:
    command = Command(gateway, folder, *arguments)
    await command.begin()
    return await command.status(), command.said


def lines(file: Path) -> list[dict[str, Any]]:
    return [msgspec.json.decode(line) for line in file.read_bytes().splitlines()]


async def test_a_file_is_asked_and_its_answers_are_written(gateway: Gateway, tmp_path: Path) -> None:
    """In the order of its lines; a run that is killed is gone on with, under the same id."""
    file, output = written(tmp_path / "in.jsonl", 40, "words=2 rate=20"), tmp_path / "out.jsonl"
    first = Command(gateway, tmp_path, str(file), "--output", str(output))
    await first.begin()
    await until(lambda: "batch " in first.said, 20)
    first.process.send_signal(SIGKILL)
    await first.status()
    assert not output.exists()
    status, said = await run(gateway, tmp_path, str(file), "--output", str(output))
    assert status == 0, said
    assert first.said.split(":")[0] == said.split(":")[0]
    assert "40/40, 0 failed" in said
    assert [line["custom_id"] for line in lines(output)] == [f"c{number}" for number in range(40)]
    assert [line["text"] for line in lines(output)] == [words(2, f"cli{number}x") for number in range(40)]


@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_an_answer_that_breaks_off_is_asked_for_again(
    gateway: Gateway, tmp_path: Path, how: Literal["fin", "rst"]
) -> None:
    """Half of what was accepted: the same is asked once more, and is the same batch."""
    file = written(tmp_path / "in.jsonl", 1, f"words=2 rate={len(how)}")
    body, _ = body_of(file, 8, "messages")
    accepted = await gateway.client.post(
        "/v1/batches", content=body, headers={"content-type": "application/json", "idempotency-key": new_id()}
    )
    size = sum(len(name) + len(value) + 4 for name, value in accepted.headers.raw) + len(accepted.content)
    async with Cutting(gateway.port, [Cut(size - 30, how)]) as proxy:
        status, said = await run(gateway, tmp_path, "--url", proxy.url, str(file))
        assert (status, proxy.left) == (0, []), said


async def test_who_waits_for_a_gateway_is_told_so(gateway: Gateway, tmp_path: Path) -> None:
    """After a moment, and in words: it may be that none was started, or that its address is another."""
    async with Cutting(gateway.port) as gone:
        url = gone.url
    command = Command(gateway, tmp_path, "--url", url, str(written(tmp_path / "in.jsonl", 1)))
    await command.begin()

    async def is_told() -> bool:
        return "does not answer (Connection refused); retrying for a minute\n" in command.said

    await until(is_told)
    command.process.send_signal(SIGINT)
    assert await command.status() == 128 + SIGINT


async def test_what_was_not_answered_is_a_status(gateway: Gateway, tmp_path: Path) -> None:
    """1 when an input failed, with its line among the others; 2 for a file that is none."""
    file = written(tmp_path / "in.jsonl", 2, f"words=2 fault=400@0 in={os.urandom(4).hex()}")
    status, said = await run(gateway, tmp_path, str(file))
    assert status == 1
    assert "2/2, 2 failed" in said
    (tmp_path / "bad.jsonl").write_text('{"custom_id": "a", "params": {"message": "hi"}}\n{"custom_id"\n')
    status, said = await run(gateway, tmp_path, str(tmp_path / "bad.jsonl"))
    assert (status, "bad.jsonl:2 is not JSON" in said) == (2, True)
    (tmp_path / "bad.jsonl").write_bytes(b'{"custom_id": "caf\xe9"}\n')
    status, said = await run(gateway, tmp_path, str(tmp_path / "bad.jsonl"))
    assert (status, "bad.jsonl:1 is not JSON" in said) == (2, True)
    # What the gateway refuses is named by its line, too, which is not its number among the inputs.
    for wrong in ({"message": "hi", "model": "nobody"}, {"message": "hi", "max_tokens": "9"}):
        rows = [{"custom_id": "a", "params": {"message": "hi"}}, {"custom_id": "b", "params": wrong}]
        (tmp_path / "bad.jsonl").write_bytes(b"\n\n".join(map(msgspec.json.encode, rows)))
        status, said = await run(gateway, tmp_path, str(tmp_path / "bad.jsonl"))
        assert (status, "bad.jsonl:3" in said, "requests[" in said) == (1, True, False), said
    (tmp_path / "none.jsonl").write_text("")
    status, said = await run(gateway, tmp_path, str(tmp_path / "none.jsonl"))
    assert (status, "none.jsonl has no inputs" in said) == (2, True)


async def test_nothing_is_asked_that_could_not_be_written_or_may_not_be_asked(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence that says what to do, before there is a batch that costs money."""
    file = written(tmp_path / "in.jsonl", 2, "words=2 rate=0")
    for output in (tmp_path / "nowhere" / "out.jsonl", tmp_path):
        status, said = await run(gateway, tmp_path, str(file), "--output", str(output))
        assert (status, said.count("\n")) == (2, 1), said
        assert f"{output} cannot be written" in said
    monkeypatch.setitem(globals(), "KEY", "another")
    status, said = await run(gateway, tmp_path, str(file))
    assert (status, "TAILRACE_KEY" in said) == (1, True), said


async def test_who_has_to_wait_for_a_stream_waits(
    system: System, generator: Process, new_gateway: NewGateway, tmp_path: Path
) -> None:
    """The batch is paid for: what is refused while another stream is open, or just closed, is read after that."""
    gateway = await new_gateway(system.nats_url, limits_key="streams=1")
    other = await gateway.client.post("/v1/turns", json={"message": "#sim words=9 wait=60 tag=cliwait"})
    command = Command(gateway, tmp_path, str(written(tmp_path / "in.jsonl", 1)))
    async with gateway.client.stream("GET", other.json()["links"]["events"]):
        await command.begin()
        await until(lambda: "batch " in command.said, 20)
        assert (await gateway.client.get(other.json()["links"]["events"])).status_code == 429
    assert await command.status() == 0, command.said
    assert "1/1, 0 failed" in command.said


async def test_ctrl_c_ends_it_without_a_traceback(gateway: Gateway, tmp_path: Path) -> None:
    """The batch goes on, as its first line has said."""
    command = Command(gateway, tmp_path, str(written(tmp_path / "in.jsonl", 1, "words=900 rate=5")))
    await command.begin()
    await until(lambda: "batch " in command.said, 20)
    command.process.send_signal(SIGINT)
    assert await command.status() == 130
    assert "Traceback" not in command.said


async def test_a_full_disk_is_not_taken_for_a_gateway_that_is_away(gateway: Gateway, tmp_path: Path) -> None:
    """It would be asked again and again; the answers wait for who comes back with room."""
    command = Command(gateway, tmp_path, str(written(tmp_path / "in.jsonl", 1)), "--output", str(tmp_path / "full"))
    (tmp_path / "full.part").symlink_to("/dev/full")
    await command.begin()
    assert await command.status() == 1
    assert "cannot be written: No space left on device" in command.said
    assert "Traceback" not in command.said


async def test_the_cheaper_way_is_an_option(gateway: Gateway, tmp_path: Path) -> None:
    """The same file, the same answers; and it is another batch than the one that was asked the other way."""
    file = written(tmp_path / "in.jsonl", 2)
    dear, cheap = tmp_path / "dear.jsonl", tmp_path / "cheap.jsonl"
    assert (await run(gateway, tmp_path, str(file), "--output", str(dear)))[0] == 0
    assert (await run(gateway, tmp_path, str(file), "--output", str(cheap), "--via", "message_batches"))[0] == 0
    assert [line["text"] for line in lines(cheap)] == [line["text"] for line in lines(dear)]
    assert sum(line["cost_usd"] for line in lines(cheap)) < sum(line["cost_usd"] for line in lines(dear))
