"""An answer that has to fit a schema: judged, asked for once more when it does not, and told so to everybody."""

import asyncio
import json
from typing import Any

import httpx2
import pytest

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.proto.entries import Attempt
from tailrace.proto.fold import Turn
from tailrace.proto.ids import Tenant, TurnId, new_id
from tailrace.proto.nats import Connection, TurnLog
from tailrace.proto.runtime.sandbox import PROCESSES_TENANT_MAX
from tailrace.proto.schema import with_schema
from tailrace.proto.subjects import TurnKey
from tests.harness.displayed_text import SAYS, data
from tests.harness.generator_in_loop import ask, ended, is_acknowledged, modes, shorten_lease, stats, working
from tests.harness.killable_generator import killed_after
from tests.harness.processes import Process
from tests.harness.readers import read
from tests.harness.system import System
from tests.harness.until import until
from tests.integration.conftest import Gateway, NewGateway, forget
from tests.promises import Connected
from tests.unit.test_json_schema import SLOW_TO_READ, doubling

SCHEMA = {"type": "object", "properties": {"km": {"type": "integer"}}, "required": ["km"]}
RIGHT, WRONG = '{"km":1230}', '{"km":"long"}'
LEASE_S = 0.2


def question(right: str = RIGHT, wrong: str | None = WRONG, more: str = "rate=0") -> str:
    """One that nobody else asks, so that calls can be counted."""
    return f"#sim {more} json={right}" + (f" wrong={wrong}" if wrong else "") + f"\n{new_id()}"


async def answered(gateway: Gateway, message: str, **body: Any) -> dict[str, Any]:
    """The turn, once it has ended."""
    posted = await gateway.client.post("/v1/turns", json={"message": message, "schema": SCHEMA} | body)
    assert posted.status_code == 202, posted.text
    turn = posted.json()["turn"]
    await read(gateway.client, turn)
    told: dict[str, Any] = (await gateway.client.get(f"/v1/turns/{turn}")).json()
    return told


def events_of(connected: Connected) -> list[dict[str, Any]]:
    return data(b"".join(frame.sent for frame in connected.frames))


def fields(turn: dict[str, Any]) -> tuple[Any, ...]:
    return turn["outcome"], turn["text"], turn["schema_valid"], turn["attempts"]


async def test_an_answer_that_fits_is_said_to_fit(gateway: Gateway) -> None:
    """One call, and the model is made to give it."""
    assert fields(await answered(gateway, question(wrong=None))) == ("completed", RIGHT, True, 1)


@pytest.mark.rule("R60")
async def test_an_answer_that_does_not_fit_is_asked_for_once_more(gateway: Gateway, claude: str) -> None:
    """The model hears why; usage and cost are those of both calls."""
    once, twice = [await answered(gateway, question(wrong=wrong)) for wrong in (None, WRONG)]
    assert fields(twice) == ("completed", RIGHT, True, 2)
    assert twice["usage"]["input_tokens"] > 2 * once["usage"]["input_tokens"]
    assert twice["cost_usd"] > 2 * once["cost_usd"]
    async with httpx2.AsyncClient(base_url=claude, trust_env=False) as client:
        told = (await client.get("/_sim/last")).json()["body"]["messages"]
    assert told[-2] == {"role": "assistant", "content": WRONG}
    assert '["km"]: "long" is not of type "integer"' in told[-1]["content"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/turns", {"message": "#sim words=1 rate=0", "schema": SCHEMA}),
        (
            "/v1/messages",
            {
                "model": "claude-sonnet-5-5",
                "max_tokens": 9,
                "messages": [{"role": "user", "content": "#sim words=1 rate=0"}],
                "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
            },
        ),
    ],
)
async def test_who_waits_for_schemas_that_take_long_is_told_to_come_again(
    system: System,
    generator: Process,
    new_gateway: NewGateway,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    body: dict[str, Any],
) -> None:
    """503 with Retry-After, in the envelope, and no turn; afterwards the same schema is taken."""
    monkeypatch.setattr("tailrace.gateway.__main__.CHECK_WAIT_S", 0.2)
    gateway = await new_gateway(system.nats_url)
    slow: list[asyncio.Task[httpx2.Response]] = []
    waited: list[httpx2.Response] = []

    async def is_kept_waiting() -> bool:
        # One that has ended meanwhile keeps nobody waiting.
        if (running := sum(not one.done() for one in slow)) < PROCESSES_TENANT_MAX:
            for _ in range(PROCESSES_TENANT_MAX - running):
                asked = gateway.client.post("/v1/turns", json={"message": "Hi", "schema": SLOW_TO_READ})
                slow.append(asyncio.create_task(asked))
            # They come first, or it is they who wait.
            return False
        waited.append(await gateway.client.post(path, json=body))
        return waited[-1].status_code == 503

    await until(is_kept_waiting)
    assert (waited[-1].json()["error"]["code"], waited[-1].headers["retry-after"]) == ("server_busy", "2")
    assert "tailrace-turn" not in waited[-1].headers
    codes = {(await one).json()["error"]["code"] for one in slow}
    assert "schema_invalid" in codes
    assert codes <= {"schema_invalid", "server_busy"}
    assert (await gateway.client.post(path, json=body)).status_code in (200, 202)


@pytest.mark.rule("R60")
async def test_it_is_asked_for_once_more_and_no_more(gateway: Gateway) -> None:
    """What does not fit then is the answer, and said not to fit."""
    assert fields(await answered(gateway, question(right=WRONG))) == ("completed", WRONG, False, 2)


@pytest.mark.parametrize("model", ["claude-haiku-5-5", "claude-fable-5-2"])
async def test_a_model_without_structured_outputs_is_told_in_its_prompt(gateway: Gateway, model: str) -> None:
    """It is the same to whoever asks."""
    assert fields(await answered(gateway, question(), model=model)) == ("completed", RIGHT, True, 2)


async def test_an_answer_that_was_cut_short_is_not_asked_for_again(gateway: Gateway) -> None:
    """It would be as short again."""
    turn = await answered(gateway, question(wrong=None), max_tokens=1)
    assert fields(turn) == ("completed", RIGHT[:8], False, 1)


async def test_a_tools_call_is_no_answer_yet(gateway: Gateway) -> None:
    """It need not fit anything, and nobody says whether it does."""
    turn = await answered(gateway, question(wrong=None, more="rate=0 tool=look"), tools=[])
    assert (turn["stop_reason"], turn["schema_valid"], turn["attempts"]) == ("tool_use", None, 1)


async def test_a_reader_is_told_to_forget_the_first_answer(gateway: Gateway) -> None:
    """`reset` in our dialect; what others make of the stream is the second answer, too."""
    turn = (await answered(gateway, question()))["turn"]
    seen = [event["type"] for event in events_of(await read(gateway.client, turn))]
    assert seen.count("reset") == 1
    assert seen.index("reset") > seen.index("delta")
    done = events_of(await read(gateway.client, turn))[-1]
    assert (done["type"], done["schema_valid"]) == ("done", True)
    for dialect, says in SAYS.items():
        answer = await gateway.client.get(f"/v1/turns/{turn}/events?dialect={dialect}")
        assert says(answer.content) == RIGHT, dialect


async def test_a_reader_who_was_there_is_broken_off_where_nothing_can_be_taken_back(gateway: Gateway) -> None:
    """As at every answer that begins anew; coming back with its cursor it gets the second, whole."""
    message = question(more="rate=0 wait=0.3")
    posted = await gateway.client.post("/v1/turns", json={"message": message, "schema": SCHEMA})
    turn = posted.json()["turn"]
    first = await read(gateway.client, turn, dialect="anthropic")
    assert first.over == "cut"
    rest = await read(gateway.client, turn, first.frames[-1].seq, dialect="anthropic")
    assert rest.over == "ended"
    assert SAYS["anthropic"](b"".join(frame.sent for frame in rest.frames)) == RIGHT


async def test_the_database_says_the_same(gateway: Gateway, system_log: TurnLog, tenant: Tenant) -> None:
    """Also once the log has forgotten the turn."""
    for right, fits in ((RIGHT, True), (WRONG, False)):
        turn = await answered(gateway, question(right=right))
        await forget(gateway, system_log, TurnKey(tenant, turn["turn"]))
        assert (await gateway.client.get(f"/v1/turns/{turn['turn']}")).json() == turn
        assert turn["schema_valid"] is fits
        assert events_of(await read(gateway.client, turn["turn"]))[-1]["schema_valid"] is fits
    plain = await gateway.client.post("/v1/turns", json={"message": "#sim words=1 rate=0"})
    told = events_of(await read(gateway.client, plain.json()["turn"]))
    assert "schema_valid" not in told[-1]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (
            "/v1/chat/completions",
            {"response_format": {"type": "json_schema", "json_schema": {"name": "river", "schema": SCHEMA}}},
        ),
        (
            "/v1/messages",
            {"max_tokens": 99, "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
        ),
    ],
)
async def test_every_protocol_that_names_a_schema_gets_an_answer_that_fits(
    gateway: Gateway, path: str, body: dict[str, Any]
) -> None:
    """One way inside: what other clients send is judged just the same."""
    messages = [{"role": "user", "content": question()}]
    answer = await gateway.client.post(path, json={"model": "claude-haiku-5-5", "messages": messages} | body)
    assert answer.status_code == 200, answer.text
    assert json.dumps(RIGHT)[1:-1] in answer.text
    turn = (await gateway.client.get(f"/v1/turns/{answer.headers['tailrace-turn']}")).json()
    assert fields(turn) == ("completed", RIGHT, True, 2)


@pytest.mark.parametrize(
    "schema",
    [{"type": "nothing"}, {"$ref": "http://127.0.0.1:1/x"}, {"enum": ["x" * 70_000]}, SLOW_TO_READ],
    ids=["none", "elsewhere", "long", "slow"],
)
@pytest.mark.usefixtures("one_cpu_second")
async def test_a_schema_that_cannot_be_used_is_refused(gateway: Gateway, schema: dict[str, Any]) -> None:
    """Before there is a turn, and without using up its key."""
    key = {"idempotency-key": new_id()}
    body = {"message": question(), "schema": schema}
    answer = await gateway.client.post("/v1/turns", json=body, headers=key)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "schema_invalid")
    answer = await gateway.client.post("/v1/turns", json=body | {"schema": SCHEMA}, headers=key)
    assert answer.status_code == 202


async def test_an_answer_that_nobody_can_judge_is_the_answer(gateway: Gateway) -> None:
    """Nobody is asked again, and nothing is claimed."""
    turn = await answered(gateway, "#sim words=1 rate=0", schema=doubling(60), model="claude-fable-5-2")
    assert (turn["outcome"], turn["schema_valid"], turn["attempts"]) == ("completed", None, 1)


@pytest.mark.rule("R60")
@pytest.mark.timeout(120)
async def test_killed_after_any_entry_an_answer_fits_in_the_end(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, own_claude: str
) -> None:
    """Between the calls, too: whoever takes over knows from the log that the model was asked again, and why."""
    await shorten_lease(own_connection, LEASE_S)
    finished: list[Turn] = []
    for appends in range(1, 99):
        calls = (await stats(own_claude))["calls"]
        line = f"rate=200 json={RIGHT} wrong={WRONG}"
        key = await ask(own_log, line, tenant=Tenant(f"t{appends}"), options=with_schema(None, SCHEMA))
        is_harmed = await killed_after(appends, own_server.url, own_claude)
        async with working(own_server.url, own_claude):
            turn = await ended(own_log, key)
            await until(lambda: is_acknowledged(own_connection))
        assert (turn.outcome, turn.text, turn.end and turn.end.schema_valid) == ("completed", RIGHT, True), appends
        asked_again = [entry for entry in await attempts_of(own_log, key) if entry.misfit is not None]
        assert len(asked_again) == 1, appends
        # A call that was cut off by the death is made again, and no other.
        assert (await stats(own_claude))["calls"] - calls <= 3
        finished.append(turn)
        if not is_harmed:
            assert await modes(own_log, key) == ["fresh", "restart"]
            break
    assert [turn.attempt for turn in finished].count(3) > 5
    assert finished[-1].attempt == 2


async def attempts_of(log: TurnLog, key: TurnKey) -> list[Attempt]:
    return [stored.entry for stored in await log.replay(key) if isinstance(stored.entry, Attempt)]


async def test_a_break_in_the_middle_of_json_begins_it_anew(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, own_claude: str
) -> None:
    """A model that has to give JSON gives it from its beginning: the rest of one is none."""
    async with working(own_server.url, own_claude):
        line = f"rate=0 fault=cut@1x1 json={RIGHT}"
        key = await ask(own_log, line, options=with_schema(None, SCHEMA))
        turn = await ended(own_log, key)
    assert await modes(own_log, key) == ["fresh", "restart"]
    assert (turn.text, turn.end and turn.end.schema_valid, turn.misfit) == (RIGHT, True, None)


async def test_the_last_attempt_is_not_asked_again(own_server: NatsServer, own_log: TurnLog, own_claude: str) -> None:
    """Where no attempt is left, the answer stands as it is."""
    async with working(own_server.url, own_claude, attempts_max=1):
        line = f"rate=0 json={RIGHT} wrong={WRONG}"
        turn = await ended(own_log, await ask(own_log, line, options=with_schema(None, SCHEMA)))
    assert (turn.outcome, turn.text, turn.end and turn.end.schema_valid) == ("completed", WRONG, False)


async def test_a_turn_that_is_cancelled_says_nothing_of_its_fit(gateway: Gateway) -> None:
    """Half an answer is not judged."""
    body = {"message": question(more="rate=1"), "schema": SCHEMA}
    turn = TurnId((await gateway.client.post("/v1/turns", json=body)).json()["turn"])
    async with asyncio.timeout(10):
        told = (await gateway.client.post(f"/v1/turns/{turn}/cancel")).json()
    assert (told["outcome"], told["schema_valid"]) == ("cancelled", None)
