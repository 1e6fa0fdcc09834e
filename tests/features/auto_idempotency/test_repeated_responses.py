"""A request to `/v1/responses` that is repeated with the output items that had arrived, as Codex does after a cut."""

import json
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tailrace.proto.entries import StoredEntry
from tailrace.proto.fold import Turn, fold
from tailrace.proto.ids import Seq, new_id
from tailrace.protocols.openai import repeated_responses, responses_routes
from tests.harness.generator_in_loop import words
from tests.harness.sse_parser import parse
from tests.integration.conftest import Gateway

AUTO = {"idempotency-key": "auto"}
MODEL = "claude-sonnet-5-5"
TOOL = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}}
THREE = "thinking=2 words=4 tool=look"


def question(line: str = f"{THREE} rate=0", **fields: Any) -> dict[str, Any]:
    """Returns the body of a new question. Its answer has thinking, a text and a call."""
    content = [{"type": "input_text", "text": f"#sim {line}\n{new_id()}"}]
    items = [{"type": "message", "role": "user", "content": content}]
    return {"model": MODEL, "input": items, "tools": [TOOL], "stream": True, "store": False, **fields}


async def stream(gateway: Gateway, body: dict[str, Any], **headers: str) -> list[dict[str, Any]]:
    answer = await gateway.client.post("/v1/responses", json=body, headers=AUTO | headers)
    assert answer.status_code == 200, answer.text
    return [json.loads(event.data) for event in parse(answer.content)]


async def stream_until_item(gateway: Gateway, body: dict[str, Any]) -> dict[str, Any]:
    """Returns the first item that is whole, and disconnects."""
    async with gateway.client.stream("POST", "/v1/responses", json=body, headers=AUTO) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                event = json.loads(line.removeprefix("data: "))
                if event["type"] == "response.output_item.done":
                    item: dict[str, Any] = event["item"]
                    return item
    raise AssertionError("the stream has no whole item")


def output_of(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the output items of a response that is whole."""
    assert events[-1]["type"] == "response.completed"
    output: list[dict[str, Any]] = events[-1]["response"]["output"]
    return output


def repeated(body: dict[str, Any], items: list[dict[str, Any]]) -> dict[str, Any]:
    return body | {"input": [*body["input"], *items]}


@pytest.mark.rule("R62")
async def test_a_repeated_request_with_the_first_items_gets_the_rest(gateway: Gateway, second_gateway: Gateway) -> None:
    """Also at another gateway. Each event has the number that it has in the whole stream."""
    body = question()
    whole = await stream(gateway, body)
    output = output_of(whole)
    assert [item["type"] for item in output] == ["reasoning", "message", "function_call"]
    for count in range(1, 4):
        rest = await stream(second_gateway, repeated(body, output[:count]))
        assert output_of(rest) == output
        assert [event["type"] for event in rest[:2]] == ["response.created", "response.in_progress"]
        done = [event["item"] for event in rest if event["type"] == "response.output_item.done"]
        assert done == output[count:]
        assert {event.get("output_index", count) for event in rest} == {*range(count, 3)} | {count}
        assert rest[-1] == whole[-1]


@pytest.mark.rule("R62")
async def test_the_rest_of_a_running_answer_is_followed(gateway: Gateway, second_gateway: Gateway) -> None:
    body = question("thinking=2 words=60 rate=60")
    item = await stream_until_item(gateway, body)
    rest = await stream(second_gateway, repeated(body, [item]))
    assert rest[0]["response"]["id"].removeprefix("resp_") in item["id"]
    texts = [event["delta"] for event in rest if event["type"] == "response.output_text.delta"]
    assert "".join(texts) == words(60)
    assert len(texts) > 1
    numbers = [event["sequence_number"] for event in rest]
    assert numbers == [*range(numbers[0], numbers[-1] + 1)]


@pytest.mark.rule("R62")
async def test_other_requests_that_end_with_output_items_are_refused_as_before(gateway: Gateway) -> None:
    """The model cannot continue a last message of the assistant."""
    body = question()
    output = output_of(await stream(gateway, body))
    other = output_of(await stream(gateway, question()))
    changed = json.loads(json.dumps(output[1]).replace("w000001", "changed"))
    without_id = {name: value for name, value in output[1].items() if name != "id"}
    unknown = output[1] | {"id": f"msg_{new_id()}_1"}
    wrong: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
        "no key": (repeated(body, output[:2]), {}),
        "a key of the client": (repeated(body, output[:2]), {"idempotency-key": new_id()}),
        "another question": (repeated(question(), output[:2]), AUTO),
        "another field": (repeated(body | {"max_output_tokens": 9}, output[:2]), AUTO),
        "another text": (repeated(body, [output[0], changed]), AUTO),
        "the id of another item": (repeated(body, [output[0], output[1] | {"id": output[2]["id"]}]), AUTO),
        "not the first items": (repeated(body, output[1:2]), AUTO),
        "items of two responses": (repeated(body, [other[0], output[1]]), AUTO),
        "no id": (repeated(body, [output[0], without_id]), AUTO),
        "no such response": (repeated(body, [unknown]), AUTO),
        "no question": (body | {"input": output[:2]}, AUTO),
    }
    for name, (sent, headers) in wrong.items():
        answer = await gateway.client.post("/v1/responses", json=sent, headers=headers)
        assert (name, answer.status_code, answer.json()["error"]["code"]) == (name, 400, "request_invalid")


async def begin(gateway: Gateway, body: dict[str, Any]) -> str:
    """Starts a response, reads its first event, and returns its id without its prefix."""
    sent = body | {"background": True}
    async with gateway.client.stream("POST", "/v1/responses", json=sent, headers=AUTO) as response:
        turn: str = response.headers["tailrace-turn"]
    return turn


def first_text(turn: str) -> dict[str, Any]:
    """Returns the item that an answer of three words has first."""
    content = [{"type": "output_text", "text": words(3)}]
    return {"type": "message", "role": "assistant", "id": f"msg_{turn}_0", "content": content}


@pytest.mark.rule("R62")
async def test_a_gateway_that_is_behind_the_items_of_the_request_waits_for_them(gateway: Gateway) -> None:
    """The client has them from another gateway."""
    body = question("words=3 tool=look wait=1")
    rest = await stream(gateway, repeated(body, [first_text(await begin(gateway, body))]))
    assert [event["item"]["type"] for event in rest if event["type"] == "response.output_item.done"] == [
        "function_call"
    ]


@pytest.mark.rule("R62")
async def test_a_text_is_whole_as_soon_as_a_search_follows(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeated_responses, "BEHIND_S_MAX", 0.4)
    # The second text begins after 1.3 s.
    body = question("words=2 server=web_search rate=1.5")
    rest = await stream(gateway, repeated(body, [await stream_until_item(gateway, body)]))
    assert [item["type"] for item in output_of(rest)] == ["message", "web_search_call", "message"]
    assert [event["output_index"] for event in rest if event["type"] == "response.output_item.done"] == [1, 2]


@pytest.mark.rule("R62")
async def test_a_search_that_the_client_has_is_not_sent_again(gateway: Gateway) -> None:
    body = question("words=2 server=web_search rate=0")
    output = output_of(await stream(gateway, body))
    rest = await stream(gateway, repeated(body, output[:2]))
    assert output_of(rest) == output
    assert [event["output_index"] for event in rest if event["type"] == "response.output_item.done"] == [2]


@pytest.mark.rule("R62")
async def test_a_gateway_that_stays_behind_asks_for_another_repetition(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeated_responses, "BEHIND_S_MAX", 0.05)
    body = question("words=3 tool=look wait=60")
    turn = await begin(gateway, body)
    answer = await gateway.client.post("/v1/responses", json=repeated(body, [first_text(turn)]), headers=AUTO)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "log_unavailable")
    await gateway.client.post(f"/v1/turns/{turn}/cancel")


@pytest.mark.rule("R62")
async def test_each_entry_of_a_turn_is_folded_once_while_a_gateway_waits(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client may name a block that never comes."""
    folded: list[Seq] = []

    def fold_noting(entries: Sequence[StoredEntry], *before: Turn) -> Turn:
        folded.extend(one.seq for one in entries)
        return fold(entries, *before)

    monkeypatch.setattr(repeated_responses, "fold", fold_noting)
    body = question("words=20 rate=40")
    turn = await begin(gateway, body)
    answer = await gateway.client.post(
        "/v1/responses", json=repeated(body, [first_text(turn) | {"id": f"msg_{turn}_9"}]), headers=AUTO
    )
    assert answer.status_code == 400
    assert len(folded) > 5
    assert len(folded) == len(set(folded))


@pytest.mark.rule("R62")
async def test_a_large_request_with_items_is_converted_beside_the_event_loop(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if only the referenced items are large."""
    converted: list[tuple[str, bool]] = []

    def note(module: Any, name: str) -> None:
        original: Callable[..., Any] = getattr(module, name)

        def noting(*given: Any) -> Any:
            converted.append((name, threading.current_thread() is threading.main_thread()))
            return original(*given)

        monkeypatch.setattr(module, name, noting)

    large = question("words=40000 rate=0", max_output_tokens=50_000)
    reference = {"type": "item_reference", "id": output_of(await stream(gateway, large | {"store": True}))[0]["id"]}
    body = question()
    body |= {"input": [*large["input"], reference, *body["input"]]}
    output = output_of(await stream(gateway, body))
    note(responses_routes, "build_turn")
    note(repeated_responses, "conversation_of")
    assert output_of(await stream(gateway, repeated(body, output[:2]))) == output
    assert converted == [("build_turn", False), *[("conversation_of", False)] * 2]


@pytest.mark.rule("R62")
@pytest.mark.parametrize(("model", "is_continued"), [("claude-sonnet-4-5", True), (MODEL, False)])
async def test_a_model_with_prefill_continues_an_answer_that_a_limit_has_cut(
    gateway: Gateway, model: str, is_continued: bool
) -> None:
    body = question("words=40 rate=0", max_output_tokens=10) | {"model": model}
    cut = await stream(gateway, body)
    assert cut[-1]["type"] == "response.incomplete"
    again = await stream(gateway, repeated(body, cut[-1]["response"]["output"]))
    assert (again[-1]["response"]["id"] != cut[-1]["response"]["id"]) == is_continued


@pytest.mark.rule("R26")
@pytest.mark.parametrize(("how", "code"), [("cancel", "turn_cancelled"), ("delete", "turn_deleted")])
async def test_a_repeated_request_for_a_response_that_was_stopped_is_refused(
    gateway: Gateway, how: str, code: str
) -> None:
    """Codex has lost the connection before the stop, and repeats the request with the item that it had received."""
    body = question("thinking=2 words=60 rate=60")
    item = await stream_until_item(gateway, body)
    turn = item["id"].removeprefix("rs_").rpartition("_")[0]
    client, path = gateway.client, f"/v1/turns/{turn}"
    stopped = await (client.post(f"{path}/cancel") if how == "cancel" else client.delete(path))
    assert stopped.status_code == 200
    for sent in (body, repeated(body, [item])):
        answer = await client.post("/v1/responses", json=sent, headers=AUTO)
        assert (answer.status_code, answer.json()["error"]["code"]) == (410, code)
