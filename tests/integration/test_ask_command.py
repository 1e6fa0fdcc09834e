"""`tailrace ask`, `chat`, `tail`, `turns`, `sessions`, `export` and `cancel` as processes."""

import asyncio
import os
import re
import sys
import termios
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from pathlib import Path
from signal import SIGINT, SIGKILL
from typing import Self

import msgspec
import pytest

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.deploy.local.ports import find_free
from tailrace.features.admin.key_store import KeyStore
from tailrace.features.admin.new_key import new_key
from tailrace.gateway.http.scope import SCOPES
from tailrace.proto.ids import Tenant, TurnId, TurnKey, new_id
from tailrace.proto.nats import TurnLog
from tests.harness import processes
from tests.harness.forks import CommandResult, run_command
from tests.harness.generator_in_loop import words
from tests.harness.processes import CHECKOUT
from tests.harness.requests import run_turn
from tests.harness.system import System
from tests.harness.turn_writer import Writer
from tests.harness.until import until
from tests.integration.conftest import KEY, Gateway, NewGateway, api_keys

SLOW = "#sim words=200 rate=100"
WAIT_S_MAX = 40.0
ANSI = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")
# Makes the standard input the terminal of the command's session, as a shell has it.
IN_SESSION = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


class Commands:
    """Runs commands with the address and the key of a gateway in the environment."""

    def __init__(self, url: str, folder: Path) -> None:
        inherited = {name: text for name, text in os.environ.items() if not name.startswith("TAILRACE_")}
        own = {"PYTHONPATH": str(CHECKOUT), "NO_PROXY": "127.0.0.1", "XDG_STATE_HOME": str(folder)}
        self._environ = inherited | own | {"TAILRACE_URL": url, "TAILRACE_KEY": KEY}

    async def start(
        self, *arguments: str, stdin: int = DEVNULL, stdout: int = PIPE, stderr: int = PIPE, **environ: str
    ) -> Process:
        command = (sys.executable, "-P", "-m", "tailrace", *arguments)
        if stdin not in (DEVNULL, PIPE):
            command = (sys.executable, "-c", IN_SESSION, *command)
        return await asyncio.create_subprocess_exec(
            *command, env=self._environ | environ, stdin=stdin, stdout=stdout, stderr=stderr
        )

    async def run(self, *arguments: str) -> CommandResult:
        return await run_command(*arguments, **self._environ)

    async def run_with_input(self, given: str, *arguments: str) -> str:
        """Returns what the command prints."""
        process = await self.start(*arguments, stdin=PIPE)
        printed, complained = await asyncio.wait_for(process.communicate(given.encode()), WAIT_S_MAX)
        assert process.returncode == 0, complained
        return printed.decode()


@pytest.fixture
def commands(gateway: Gateway, tmp_path: Path) -> Commands:
    return Commands(gateway.url, tmp_path)


async def read_some(process: Process) -> bytes:
    """Returns the first words that a command prints."""
    assert process.stdout is not None
    return await asyncio.wait_for(process.stdout.readexactly(60), WAIT_S_MAX)


async def test_a_pipe_gets_each_word_once_when_the_gateway_is_killed(
    system: System, gateway: Gateway, tenant: Tenant, tmp_path: Path
) -> None:
    (port,) = find_free(1)
    settings = {"TAILRACE_PORT": port, "TAILRACE_API_KEYS": api_keys(tenant)}
    async with processes.gateway(tmp_path, system.nats_url, **settings) as killed:
        asking = await Commands(f"http://127.0.0.1:{port}", tmp_path).start("ask", SLOW)
        first = await read_some(asking)
        await killed.stop(SIGKILL)
        await killed.start()
        rest, complained = await asyncio.wait_for(asking.communicate(), WAIT_S_MAX)
    assert (asking.returncode, (first + rest).decode()) == (0, f"{words(200)}\n")
    assert re.fullmatch(
        rf"the connection to http://127.0.0.1:{port} is lost \(.*\); trying again\n", complained.decode()
    )
    assert (await gateway.client.get("/v1/usage")).json()["data"][0]["turns"] == 1


async def test_an_interrupted_answer_goes_on_and_is_resumed(commands: Commands, gateway: Gateway) -> None:
    asking = await commands.start("ask", SLOW)
    await read_some(asking)
    asking.send_signal(SIGINT)
    _, complained = await asyncio.wait_for(asking.communicate(), WAIT_S_MAX)
    assert asking.returncode == 128 + SIGINT
    turn = complained.decode().partition("tailrace tail ")[2].partition("\n")[0]
    assert "Traceback" not in complained.decode()
    assert (await commands.run("ask", "--resume")).out == f"{words(200)}\n"
    lines = [msgspec.json.decode(line) for line in (await commands.run("tail", turn, "--json")).out.splitlines()]
    assert "".join(line["text"] for line in lines if line["type"] == "delta") == words(200)
    assert (await commands.run("tail", f"msg_{turn}", "--after", lines[-1]["cursor"])).out == ""


class OnTerminal:
    """`async with`: a command on a terminal of its own, which ends with the exit status `status`."""

    def __init__(self, commands: Commands, *arguments: str, **environ: str) -> None:
        self._commands = commands
        self._arguments = arguments
        self.status = 0
        self._environ = {"COLUMNS": "100"} | environ
        self._shown = b""

    async def __aenter__(self) -> Self:
        self.terminal, its = os.openpty()
        self.process = await self._commands.start(*self._arguments, stdin=its, stdout=its, stderr=its, **self._environ)
        os.close(its)
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                await self.leave()
                assert await asyncio.wait_for(self.process.wait(), WAIT_S_MAX) == self.status
        finally:
            os.close(self.terminal)

    async def leave(self) -> None:
        """Ends a command that does not end by itself."""

    async def until_shown(self, text: bytes) -> bytes:
        """Returns what the terminal shows before `text`, since the last call."""
        while text not in self._shown:
            self._shown += await asyncio.wait_for(asyncio.to_thread(os.read, self.terminal, 10_000), WAIT_S_MAX)
        before, _, self._shown = self._shown.partition(text)
        return before


class ChatOnTerminal(OnTerminal):
    """`async with`: `tailrace chat` on a terminal of its own. Its end is Ctrl-D."""

    def __init__(self, commands: Commands, **environ: str) -> None:
        super().__init__(commands, "chat", **environ)

    async def leave(self) -> None:
        await self._type(b"\x04")

    async def type_line(self, line: bytes) -> None:
        await self._type(line + b"\n")

    async def _type(self, keys: bytes) -> None:
        # Before the prompt the terminal is not in readline's mode, which loses keys and makes another of Ctrl-D.
        await self.until_shown(b"> ")
        os.write(self.terminal, keys)


async def test_a_chat_on_a_terminal_shows_markdown_and_ctrl_c_ends_a_turn(commands: Commands, gateway: Gateway) -> None:
    """The block that grows is drawn again, and the last drawing has each word once, before the line about its cost."""
    async with ChatOnTerminal(commands, TERM="xterm-256color") as chat:
        await chat.until_shown(b"simulated model: no API key is set")
        await chat.type_line(b"#sim words=4000 rate=50")
        await chat.until_shown(b"w000012")
        chat.process.send_signal(SIGINT)
        await chat.until_shown(b"stopped")
        await chat.type_line(b"#sim words=30 rate=100")
        drawn = await chat.until_shown(b" tokens in")
        assert re.fullmatch(rb", 30 out, \$0\.\d+", await chat.until_shown(b" simulated, turn "))
    plain = ANSI.sub(b"", drawn[drawn.rindex(b"\x1b[?25h") :]).decode()
    assert re.findall(r"w\d{6}", plain) == words(30).split()
    [session] = (await gateway.client.get("/v1/sessions")).json()["data"]
    turns = (await gateway.client.get(f"/v1/sessions/{session['session']}/turns")).json()["turns"]
    assert [turn["outcome"] for turn in turns] == ["cancelled", "completed"]


async def test_a_line_that_is_typed_while_an_answer_is_shown_steers_it(commands: Commands, gateway: Gateway) -> None:
    """The keys are shown below the answer, and the line between the two answers. The terminal is as before then."""
    async with OnTerminal(commands, "ask", "#sim words=4000 rate=50", TERM="xterm-256color") as ask:
        modes = termios.tcgetattr(ask.terminal)
        await ask.until_shown(b"w000012")
        os.write(ask.terminal, b"#sim words=3 rate=9")
        await ask.until_shown(b"> #sim words=3 rate=9")
        os.write(ask.terminal, b"\x7f0\r")
        drawn = await ask.until_shown(b" tokens in")
        assert termios.tcgetattr(ask.terminal) == modes
        await ask.until_shown(b", turn ")
    before, _, after = drawn.rpartition(b"> #sim words=3 rate=0")
    assert b"w000013" in before
    last = ANSI.sub(b"", after[after.rindex(b"\x1b[?25h") :]).decode()
    assert re.findall(r"w\d{6}", last) == words(3).split()
    [session] = (await gateway.client.get("/v1/sessions")).json()["data"]
    first, second = (await gateway.client.get(f"/v1/sessions/{session['session']}/turns")).json()["turns"]
    assert (first["outcome"], second["outcome"]) == ("cancelled", "completed")
    assert second["input"] == [{"role": "user", "content": "#sim words=3 rate=0"}]


async def test_ctrl_c_stops_reading_while_a_line_is_typed(commands: Commands) -> None:
    async with OnTerminal(commands, "ask", SLOW, TERM="xterm-256color") as ask:
        ask.status = 128 + SIGINT
        modes = termios.tcgetattr(ask.terminal)
        await ask.until_shown(b"w000012")
        os.write(ask.terminal, b"not sent\x03")
        await ask.until_shown(b"the turn goes on")
        await ask.until_shown(b"tailrace cancel")
        assert termios.tcgetattr(ask.terminal) == modes
    assert (await commands.run("ask", "--resume")).out == f"{words(200)}\n"


async def test_a_spent_budget_a_full_log_and_a_revoked_key_are_one_sentence_each(
    own_server: NatsServer, own_log: TurnLog, new_gateway: NewGateway, tenant: Tenant, tmp_path: Path
) -> None:
    """On a terminal the chat goes on after the refusal. A key is revoked in the middle of an answer."""
    keys = KeyStore(own_log.connection)
    key = new_key(tenant, now=int(time.time()), scopes=SCOPES)
    await keys.create(key.record)
    spent = await new_gateway(own_server.url, limits_tenant="usd_day=0.000001")
    full = await new_gateway(own_server.url, full_at=1e-9)
    other = await new_gateway(own_server.url)
    writer = Writer(own_log, TurnKey(tenant, TurnId(new_id())))
    await writer.open("The first part")

    async def is_full() -> bool:
        return "of the log's bytes are used" in (await full.client.get("/readyz")).text

    await until(is_full)
    refused = await Commands(full.url, tmp_path).run("ask", "Hi.")
    assert (refused.status, refused.err.count("\n")) == (1, 1)
    assert "the server's storage is nearly full" in refused.err
    reading = await Commands(other.url, tmp_path).start("tail", writer.key.turn, TAILRACE_KEY=key.secret)
    assert reading.stdout is not None
    await asyncio.wait_for(reading.stdout.readexactly(5), WAIT_S_MAX)
    await keys.revoke(key.record.id, int(time.time()))
    _, complained = await asyncio.wait_for(reading.communicate(), WAIT_S_MAX)
    assert (reading.returncode, complained.decode().splitlines()[-1].count("set the key in TAILRACE_KEY")) == (1, 1)
    async with ChatOnTerminal(Commands(spent.url, tmp_path)) as chat:
        await chat.type_line(b"Hi.")
        await chat.until_shown(b"The budget of this tenant")


# About ten commands, each a process of its own.
@pytest.mark.timeout(180)
async def test_a_conversation_is_asked_listed_and_exported(commands: Commands, tmp_path: Path) -> None:
    """A chat, a question in its session, and lists as tables and as JSON."""
    chatted = await commands.run_with_input("#sim words=2\n\n#sim words=3\n", "chat", "--model", "haiku")
    assert chatted == f"{words(2)}\n{words(3)}\n"
    [session] = msgspec.json.decode((await commands.run("sessions", "--json")).out)
    name = session["session"]
    output = await commands.run_with_input("#sim words=4", "ask", "-", "--session", name, "--json")
    end = msgspec.json.decode(output)
    assert (end["text"], end["session"], end["outcome"]) == (words(4), name, "completed")
    assert (await commands.run("ask", "--continue", "#sim words=5")).out == f"{words(5)}\n"
    again = await commands.run_with_input("#sim words=6\n#sim words=7\n", "chat", "--session", name, "--json")
    ends = [msgspec.json.decode(line) for line in again.splitlines()]
    assert [(end["text"], end["session"]) for end in ends] == [(words(count), name) for count in (6, 7)]
    turns = msgspec.json.decode((await commands.run("turns", "--session", name, "--json")).out)
    assert [turn["text"] for turn in turns] == [words(count) for count in range(2, 8)]
    table = (await commands.run("turns", "--session", name)).out
    assert [turn["turn"] in table for turn in turns] == [True] * 6
    assert (await commands.run("turns")).out == "no turn is running\n"
    found = msgspec.json.decode((await commands.run("turns", "--search", "W000005 w000001", "--json")).out)
    assert [turn["turn"] for turn in found] == [turn["turn"] for turn in turns[:-3:-1]]
    assert turns[-1]["turn"] in (await commands.run("turns", "--search", "w000006")).out
    assert (await commands.run("turns", "--search", "estuary")).out == "no turns\n"
    slowest = msgspec.json.decode((await commands.run("turns", "--slowest", "--limit", "2", "--json")).out)
    assert slowest[0]["first_token_s"] >= slowest[1]["first_token_s"]
    assert f"{slowest[0]['first_token_s']:.1f} s" in (await commands.run("turns", "--slowest")).out
    assert (await commands.run("turns", "--slowest", "--to", "2020-01-01")).out == "no turns\n"
    assert (await commands.run("export", name, "--output", str(tmp_path / "it.md"))).status == 0
    assert (tmp_path / "it.md").read_text().count("## claude-haiku-5-5") == 2
    exported = msgspec.json.decode((await commands.run("export", name, "--json")).out)
    assert [turn["turn"] for turn in exported["turns"]] == [turn["turn"] for turn in turns]


async def test_long_messages_are_exported_with_their_text(commands: Commands, gateway: Gateway) -> None:
    """The gateway stores them as blobs."""
    question, result = (f"#sim words=1 rate=0\n{letter * 70_000}" for letter in "qr")
    call = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": [call]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": result}]},
    ]
    tools = [{"name": "look", "input_schema": {"type": "object"}}]
    posted = await run_turn(gateway, message=None, messages=messages, tools=tools)
    exported = (await commands.run("export", posted["session"])).out
    assert [text in exported for text in (question, result)] == [True, True]


async def test_each_refusal_is_one_sentence(commands: Commands, gateway: Gateway) -> None:
    posted = await gateway.client.post("/v1/turns", json={"message": "#sim words=9 wait=60"})
    cancelled = await commands.run("cancel", posted.json()["turn"])
    assert cancelled.out == f"{posted.json()['turn']}: cancelled\n"
    assert (await commands.run("tail", posted.json()["turn"])).status == 1
    for arguments, status, sentence in (
        (("ask", "--resume"), 2, "there is no earlier `tailrace ask`"),
        (("ask",), 2, "the question is empty"),
        (("ask", "Hi.", "--model", "gpt"), 1, "gpt"),
        (("ask", "Hi.", "--key", "wrong"), 1, "set the key in TAILRACE_KEY"),
        (("tail", "01a1fe35-0000-7000-8000-000000000000"), 1, "no turn has this id"),
        (("turns", "--session", "none"), 1, "no session or chat has this id"),
    ):
        ran = await commands.run(*arguments)
        assert (ran.status, ran.out, ran.err.count("\n")) == (status, "", 1), ran
        assert sentence in ran.err
