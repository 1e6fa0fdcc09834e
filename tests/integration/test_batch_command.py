"""`tailrace batch` as a process: a file of inputs, its results, interruptions and errors."""

import asyncio
import os
import stat
from collections.abc import Callable
from pathlib import Path
from signal import SIGINT, SIGKILL
from typing import Any

import msgspec
import pytest

from tailrace.deploy.cli.batch import body_of
from tailrace.proto.ids import new_id
from tests.harness.cutting_proxy import Cut, Cutting
from tests.harness.forks import fork
from tests.harness.generator_in_loop import words
from tests.harness.processes import Process
from tests.harness.system import System
from tests.harness.until import until
from tests.integration.conftest import KEY, Gateway, NewGateway


class Command:
    """One run of the command in `folder`."""

    def __init__(self, gateway: Gateway, folder: Path, *arguments: str, key: str = KEY) -> None:
        self._output = folder / f"output-{os.urandom(4).hex()}.txt"
        self._arguments = ("batch", "--url", gateway.url, *arguments)
        self._environ = {"TAILRACE_KEY": key, "NO_PROXY": "127.0.0.1"}

    async def start(self, until_printed: str = "batch") -> None:
        self._output.touch()
        self.process = await fork("tailrace", self._arguments, self._environ, self._output)
        await until(lambda: until_printed in self.output_text or self.process.returncode is not None, 20)

    @property
    def output_text(self) -> str:
        return self._output.read_text()

    async def status(self) -> int | None:
        return await asyncio.to_thread(self.process.wait, 40)

    async def interrupt(self) -> int | None:
        os.kill(self.process.pid, SIGINT)
        return await self.status()


RunCommand = Callable[..., Command]


@pytest.fixture
def command(gateway: Gateway, tmp_path: Path) -> RunCommand:
    return lambda *arguments, key=KEY: Command(gateway, tmp_path, *map(str, arguments), key=key)


async def run(command: Command) -> tuple[int | None, str]:
    """Returns the exit status and what the command printed."""
    await command.start()
    return await command.status(), command.output_text


def write(file: Path, count: int, line: str = "words=2 rate=0") -> Path:
    rows = [
        {"custom_id": f"c{number}", "params": {"message": f"#sim {line} tag=cli{number}x"}} for number in range(count)
    ]
    file.write_bytes(b"\n".join(map(msgspec.json.encode, rows)))
    return file


def lines(file: Path) -> list[dict[str, Any]]:
    return [msgspec.json.decode(line) for line in file.read_bytes().splitlines()]


async def test_results_are_written_in_the_order_of_the_file(command: RunCommand, tmp_path: Path) -> None:
    """A run after a kill continues the same batch."""
    file, output = write(tmp_path / "in.jsonl", 40, "words=2 rate=20"), tmp_path / "out.jsonl"
    first = command(file, "--output", output)
    await first.start()
    os.kill(first.process.pid, SIGKILL)
    await first.status()
    assert not output.exists()
    status, printed = await run(command(file, "--output", output))
    assert status == 0, printed
    assert first.output_text.split(":")[0] == printed.split(":")[0]
    assert "40/40, 0 failed" in printed
    assert [line["custom_id"] for line in lines(output)] == [f"c{number}" for number in range(40)]
    assert [line["text"] for line in lines(output)] == [words(2, f"cli{number}x") for number in range(40)]


async def test_a_response_that_breaks_off_is_requested_again(
    gateway: Gateway, command: RunCommand, tmp_path: Path
) -> None:
    """The repeated POST has the same Idempotency-Key, so that it is the same batch."""
    file = write(tmp_path / "in.jsonl", 1)
    body, _ = body_of(file, 8, "messages")
    headers = {"content-type": "application/json", "idempotency-key": new_id()}
    accepted = await gateway.client.post("/v1/turn-batches", content=body, headers=headers)
    size = sum(len(name) + len(value) + 4 for name, value in accepted.headers.raw) + len(accepted.content)
    async with Cutting(gateway.port, [Cut(size - 30)]) as proxy:
        status, printed = await run(command("--url", proxy.url, file, "--json"))
        assert (status, proxy.left) == (0, []), printed
    # The last line of the progress, and the answer.
    events = [msgspec.json.decode(line) for line in printed.splitlines() if line.startswith("{")]
    assert [event["outcome"] for event in events[-2:]] == ["completed"] * 2


async def test_ctrl_c_ends_it_without_a_traceback(command: RunCommand, tmp_path: Path) -> None:
    run = command(write(tmp_path / "in.jsonl", 1, "words=900 rate=5"))
    await run.start()
    assert await run.interrupt() == 128 + SIGINT
    assert "Traceback" not in run.output_text


async def test_failed_inputs_are_exit_status_1(command: RunCommand, tmp_path: Path) -> None:
    file = write(tmp_path / "in.jsonl", 2, f"words=2 fault=400@0 in={os.urandom(4).hex()}")
    status, printed = await run(command(file))
    assert (status, "2/2, 2 failed" in printed) == (1, True)


VALID = b'{"custom_id": "a", "params": {"message": "hi"}}\n'
# The file, the exit status, and what the command prints. Empty lines count.
INVALID = {
    "half a line": (VALID + b'{"custom_id"\n', 2, "in.jsonl:2 is not JSON: Input data was truncated"),
    "a wrong character": (b"{custom_id: 1}\n", 2, "in.jsonl:1 is not JSON: object keys must be strings"),
    "not UTF-8": (b'{"custom_id": "caf\xe9"}\n', 2, "in.jsonl:1 is not JSON"),
    "no input": (b"", 2, "in.jsonl has no inputs"),
    "unknown model": (VALID + b'\n{"custom_id": "b", "params": {"message": "hi", "model": "x"}}', 1, "in.jsonl:3"),
    "wrong type": (VALID + b'\n{"custom_id": "b", "params": {"message": "hi", "max_tokens": "9"}}', 1, "in.jsonl:3"),
}


@pytest.mark.parametrize("case", INVALID)
async def test_an_invalid_file_is_refused_with_the_line(command: RunCommand, tmp_path: Path, case: str) -> None:
    content, status, message = INVALID[case]
    file = tmp_path / "in.jsonl"
    file.write_bytes(content)
    found, printed = await run(command(file))
    assert (found, message in printed, "requests[" in printed) == (status, True, False), printed


async def test_an_unwritable_output_or_a_wrong_key_creates_no_batch(command: RunCommand, tmp_path: Path) -> None:
    file = write(tmp_path / "in.jsonl", 2)
    for output in (tmp_path / "nowhere" / "out.jsonl", tmp_path):
        status, printed = await run(command(file, "--output", output))
        assert (status, printed.count("\n")) == (2, 1), printed
        assert f"{output} cannot be written" in printed
    status, printed = await run(command(file, key="another"))
    assert (status, "TAILRACE_KEY" in printed, "batch " in printed) == (1, True, False), printed


async def test_results_are_read_when_a_stream_is_free(
    system: System, generator: Process, new_gateway: NewGateway, tmp_path: Path
) -> None:
    gateway = await new_gateway(system.nats_url, limits_key="streams=1")
    other = await gateway.client.post("/v1/turns", json={"message": "#sim words=9 wait=60 tag=cliwait"})
    command = Command(gateway, tmp_path, str(write(tmp_path / "in.jsonl", 1)))
    async with gateway.client.stream("GET", other.json()["links"]["events"]):
        await command.start()
        assert (await gateway.client.get(other.json()["links"]["events"])).status_code == 429
    assert await command.status() == 0, command.output_text
    assert "1/1, 0 failed" in command.output_text


async def test_a_full_disk_ends_the_command(command: RunCommand, tmp_path: Path) -> None:
    """It is not retried like a gateway that does not answer."""
    status, printed = await run(command(write(tmp_path / "in.jsonl", 1), "--output", "/dev/full"))
    assert status == 1
    assert "cannot be written: No space left on device" in printed
    assert "Traceback" not in printed
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)  # noqa: PTH116


async def test_message_batches_cost_less_and_give_the_same_answers(command: RunCommand, tmp_path: Path) -> None:
    file = write(tmp_path / "in.jsonl", 2)
    live, cheap = tmp_path / "live.jsonl", tmp_path / "cheap.jsonl"
    assert (await run(command(file, "--output", live)))[0] == 0
    assert (await run(command(file, "--output", cheap, "--via", "message_batches")))[0] == 0
    assert [line["text"] for line in lines(cheap)] == [line["text"] for line in lines(live)]
    assert sum(line["cost_usd"] for line in lines(cheap)) < sum(line["cost_usd"] for line in lines(live))
