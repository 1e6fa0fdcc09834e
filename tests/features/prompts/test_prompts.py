"""Prompt templates over HTTP: listing, turns and batches."""

from pathlib import Path

import msgspec
import pytest

from tailrace.proto.ids import Tenant, TurnKey
from tailrace.proto.nats import TurnLog
from tailrace.proto.ownership import ScopedKey
from tests.harness.generator_in_loop import wait_for_end, words
from tests.harness.readers import read
from tests.harness.system import System
from tests.integration.conftest import Gateway, NewGateway

SOURCE = """{# Says a few words. #}
{% block system %}Be brief.{% endblock %}
{% block message %}#sim words={{ n }} rate=0{% endblock %}"""


@pytest.fixture
async def prompt_gateway(
    tmp_path: Path, system: System, generator: object, persistence: object, new_gateway: NewGateway
) -> Gateway:
    """A gateway with one prompt template."""
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "words.j2").write_text(SOURCE)
    return await new_gateway(system.nats_url, prompts=str(folder))


async def test_a_turn_and_the_inputs_of_a_batch_store_the_rendered_prompt(
    prompt_gateway: Gateway, system_log: TurnLog, tenant: Tenant
) -> None:
    """A repeated POST with the same idempotency key is the same turn. Prompts are listed without their text."""
    client, body = prompt_gateway.client, {"prompt": {"name": "words", "variables": {"n": 3}}}
    posts = [await client.post("/v1/turns", json=body, headers={"idempotency-key": "three"}) for _ in range(2)]
    assert [post.status_code for post in posts] == [202, 202]
    (turn,) = {post.json()["turn"] for post in posts}
    await read(client, turn)
    assert (await client.get(f"/v1/turns/{turn}")).json()["text"] == words(3)
    requests = [{"custom_id": f"c{n}", "params": {"prompt": {**VALID, "variables": {"n": n}}}} for n in (1, 3)]
    batch = (await client.post("/v1/turn-batches", json={"requests": requests})).json()
    await wait_for_end(system_log, TurnKey(tenant, batch["batch"]))
    lines = [msgspec.json.decode(line) for line in (await client.get(batch["links"]["results"])).iter_lines()]
    assert [line["text"] for line in lines] == [words(1), words(3)]
    for stored in (turn, lines[1]["turn"]):
        request = (await system_log.read_turn(ScopedKey.whole(TurnKey(tenant, stored)))).request
        assert request is not None
        assert (request.system, request.messages[0].content) == ("Be brief.", "#sim words=3 rate=0")
    expected = {"name": "words", "description": "Says a few words.", "variables": ["n"], "makes": ["system", "message"]}
    assert (await client.get("/v1/prompts")).json() == {"object": "list", "data": [expected]}
    assert (await client.get("/v1/prompts/words")).json() == expected


async def test_an_unknown_prompt_name_is_404(prompt_gateway: Gateway) -> None:
    for name in ("none", "..", "..%2fwords", "%2e%2e%2fwords", "words.j2", "wOrds", "words%00"):
        answer = await prompt_gateway.client.get(f"/v1/prompts/{name}")
        assert answer.status_code == 404, name
        posted = await prompt_gateway.client.post("/v1/turns", json={"prompt": {"name": name, "variables": {"n": 1}}})
        assert (posted.status_code, posted.json()["error"]["code"]) == (404, "prompt_not_found"), name


VALID = {"name": "words", "variables": {"n": 1}}
WRONG: list[tuple[dict[str, object], str]] = [
    ({"prompt": {"name": "words"}}, "prompt_invalid"),
    ({"prompt": {"name": "words", "variables": {"n": 1, "m": 1}}}, "prompt_invalid"),
    ({"prompt": {"name": "none"}}, "prompt_not_found"),
    ({"prompt": VALID, "message": "Hi"}, "request_invalid"),
    ({"prompt": {**VALID, "more": 1}}, "request_invalid"),
    ({"prompt": "words"}, "request_invalid"),
]


async def test_wrong_variables_or_fields_are_refused(prompt_gateway: Gateway) -> None:
    """No turn and no batch is created; an error in a batch names the input."""
    for body, code in WRONG:
        answer = await prompt_gateway.client.post("/v1/turns", json=body)
        status = 404 if code == "prompt_not_found" else 400
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), body
        requests = [{"custom_id": "good", "params": {"prompt": VALID}}, {"custom_id": "bad", "params": body}]
        answer = await prompt_gateway.client.post("/v1/turn-batches", json={"requests": requests})
        error = answer.json()["error"]
        assert (error["code"], "`requests[1]" in error["message"]) == (code, True), error


async def test_the_rendered_inputs_of_a_batch_have_a_size_limit(
    tmp_path: Path, nats_url: str, new_gateway: NewGateway
) -> None:
    """Templates must not turn kilobytes into gigabytes."""
    (tmp_path / "many.j2").write_text("{{ text * 10 }}")
    gateway = await new_gateway(nats_url, prompts=str(tmp_path), body_bytes_max=100_000)
    params = {"prompt": {"name": "many", "variables": {"text": "x" * 4000}}}
    requests = [{"custom_id": f"c{number}", "params": params} for number in range(4)]
    error = (await gateway.client.post("/v1/turn-batches", json={"requests": requests})).json()["error"]
    assert (error["code"], error["message"].startswith("`requests[2]`")) == ("body_too_large", True), error
