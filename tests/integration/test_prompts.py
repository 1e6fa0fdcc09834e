"""Prompts over HTTP: listed, used by name, and stored as what they have become."""

from pathlib import Path
from signal import SIGTERM

import httpx2
import msgspec
import pytest

from tailrace.proto.ids import Tenant
from tailrace.proto.nats import TurnLog
from tailrace.proto.subjects import TurnKey
from tests.answering import ended, words
from tests.integration.conftest import Gateway, House, NewGateway
from tests.processes import gateway as gateway_process
from tests.reading import read

SOURCE = """{# Says a few words. #}
{% block system %}Be brief.{% endblock %}
{% block message %}#sim words={{ n }} rate=0{% endblock %}"""


@pytest.fixture
async def prompting(
    tmp_path: Path, house: House, generator: object, persistence: object, new_gateway: NewGateway
) -> Gateway:
    """A gateway whose operator has written a prompt."""
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "words.j2").write_text(SOURCE)
    return await new_gateway(house.nats_url, prompts=str(folder))


async def test_a_turn_is_asked_by_a_prompts_name(prompting: Gateway, house_log: TurnLog, tenant: Tenant) -> None:
    """The log holds what the model is told; a repeat with the same key is the same turn."""
    body = {"prompt": {"name": "words", "variables": {"n": 3}}}
    posts = [
        await prompting.client.post("/v1/turns", json=body, headers={"idempotency-key": "three"}) for _ in range(2)
    ]
    assert [post.status_code for post in posts] == [202, 202]
    (turn,) = {post.json()["turn"] for post in posts}
    await read(prompting.client, turn)
    told = (await prompting.client.get(f"/v1/turns/{turn}")).json()
    assert told["text"] == "w000000 w000001 w000002"
    folded = await house_log.turn(TurnKey(tenant, turn))
    assert folded.request is not None
    assert folded.request.system == "Be brief."
    assert folded.request.messages[0].content == "#sim words=3 rate=0"


async def test_prompts_are_listed_and_told(prompting: Gateway) -> None:
    """What they take, and not what they say, which is the operator's."""
    listed = (await prompting.client.get("/v1/prompts")).json()
    about = {"name": "words", "description": "Says a few words.", "variables": ["n"], "makes": ["system", "message"]}
    assert listed == {"object": "list", "data": [about]}
    assert (await prompting.client.get("/v1/prompts/words")).json() == about


@pytest.mark.parametrize("name", ["none", "..", "..%2fwords", "%2e%2e%2fwords", "words.j2", "wOrds", "words%00"])
async def test_another_name_is_not_there(prompting: Gateway, name: str) -> None:
    """Whatever it looks like: in a path and in a body."""
    there = await prompting.client.get(f"/v1/prompts/{name}")
    assert there.status_code == 404
    asked = await prompting.client.post("/v1/turns", json={"prompt": {"name": name, "variables": {"n": 1}}})
    assert (asked.status_code, asked.json()["error"]["code"]) == (404, "prompt_not_found")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"prompt": {"name": "words"}}, "prompt_invalid"),
        ({"prompt": {"name": "words", "variables": {"n": 1, "m": 1}}}, "prompt_invalid"),
        ({"prompt": {"name": "words", "variables": {"n": 1}}, "message": "Hi"}, "request_invalid"),
        ({"prompt": {"name": "words", "variables": {"n": 1}, "more": 1}}, "request_invalid"),
        ({"prompt": "words"}, "request_invalid"),
    ],
)
async def test_what_does_not_fit_a_prompt_is_refused(prompting: Gateway, body: dict[str, object], code: str) -> None:
    """Before there is a turn."""
    answer = await prompting.client.post("/v1/turns", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)


async def test_prompts_are_told_to_who_has_a_key(prompting: Gateway) -> None:
    """What an operator calls them is nobody else's business."""
    async with httpx2.AsyncClient(base_url=prompting.url, trust_env=False) as stranger:
        for path in ("/v1/prompts", "/v1/prompts/words", "/v1/prompts/none"):
            assert (await stranger.get(path)).status_code == 401


async def test_a_gateway_with_a_broken_prompt_does_not_start(tmp_path: Path, nats_url: str) -> None:
    """It says which file, with the status of a setting that is wrong."""
    (tmp_path / "broken.j2").write_text("{{ a")
    process = gateway_process(tmp_path, nats_url, TAILRACE_PROMPTS=tmp_path)
    with pytest.raises(AssertionError, match=r"broken\.j2"):
        await process.start()
    assert await process.stop(SIGTERM) == 2


async def test_a_batchs_inputs_are_asked_by_prompts(prompting: Gateway, house_log: TurnLog, tenant: Tenant) -> None:
    """Each with its own values, and stored as what they have become."""
    requests = [
        {"custom_id": f"c{n}", "params": {"prompt": {"name": "words", "variables": {"n": n}}}} for n in range(1, 4)
    ]
    batch = (await prompting.client.post("/v1/batches", json={"requests": requests})).json()
    await ended(house_log, TurnKey(tenant, batch["batch"]))
    lines = [msgspec.json.decode(line) for line in (await prompting.client.get(batch["links"]["results"])).iter_lines()]
    assert [line["text"] for line in lines] == [words(n) for n in range(1, 4)]
    first = (await house_log.turn(TurnKey(tenant, lines[0]["turn"]))).request
    assert first is not None
    assert (first.system, first.messages[0].content) == ("Be brief.", "#sim words=1 rate=0")


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"prompt": {"name": "words"}}, "prompt_invalid"),
        ({"prompt": {"name": "none"}}, "prompt_not_found"),
        ({"prompt": {"name": "words", "variables": {"n": 1}}, "message": "Hi"}, "request_invalid"),
    ],
)
async def test_a_batchs_prompts_are_refused_by_their_number(
    prompting: Gateway, params: dict[str, object], code: str
) -> None:
    """Before there is a batch."""
    good = {"prompt": {"name": "words", "variables": {"n": 1}}}
    requests = [{"custom_id": "good", "params": good}, {"custom_id": "bad", "params": params}]
    error = (await prompting.client.post("/v1/batches", json={"requests": requests})).json()["error"]
    assert (error["code"], error["message"].startswith("`requests[1]`")) == (code, True), error


async def test_what_prompts_make_of_a_batch_has_a_bound(tmp_path: Path, nats_url: str, new_gateway: NewGateway) -> None:
    """A body of some kilobytes is not made into gigabytes."""
    (tmp_path / "many.j2").write_text("{{ text * 10 }}")
    gateway = await new_gateway(nats_url, prompts=str(tmp_path), body_bytes_max=100_000)
    params = {"prompt": {"name": "many", "variables": {"text": "x" * 4000}}}
    requests = [{"custom_id": f"c{number}", "params": params} for number in range(4)]
    error = (await gateway.client.post("/v1/batches", json={"requests": requests})).json()["error"]
    assert (error["code"], error["message"].startswith("`requests[2]`")) == ("body_too_large", True), error
