"""Full text search over HTTP, and text that databases treat in different ways: SQLite and PostgreSQL."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from tailrace.proto.ids import Tenant
from tests.harness.own_system import OwnSystem
from tests.harness.persistence_in_loop import Persistence
from tests.harness.requests import post_until_ended
from tests.integration.conftest import Gateway, NewGateway, api_keys

QUICK = "#sim words=3 rate=0 tag={}"
JSON = {"content-type": "application/json"}
# Each must come back as it was sent. JSON cannot carry a part of a pair of surrogates to a gateway.
HOSTILE = ("a\0b", "\1", "\x010", "\x011", "\x7f", "'; --", '"', "\\u0000", "\\", "\U0010ffff", "\ufeff", "x" * 400)


@pytest_asyncio.fixture
async def gateway(own: OwnSystem, own_gateway: Gateway, either_database: Path | str) -> AsyncIterator[Gateway]:
    async with own.running_generator(), Persistence(own.server.url, either_database):
        yield own_gateway


async def post_answered_turn(gateway: Gateway, message: str, **given: object) -> str:
    """Returns the id of a turn that has ended."""
    return str((await post_until_ended(gateway, message=message, **given))["turn"])


async def search_turns(gateway: Gateway, text: str, **query: str) -> list[str]:
    answer = await gateway.client.get("/v1/turns", params={"q": text, **query})
    assert answer.status_code == 200, answer.text
    return [turn["turn"] for turn in answer.json()["data"]]


async def test_turns_are_found_by_the_words_of_their_question_and_answer(
    gateway: Gateway, new_gateway: NewGateway, own: OwnSystem
) -> None:
    """In pages, newest first, with labels; not those of other tenants, nor what was deleted or has `store: false`."""
    theirs = await new_gateway(own.server.url, api_keys=api_keys(Tenant("another")))
    rivers = [
        await post_answered_turn(
            gateway, f"Où est le FLEUVE Loire, by Tailrace™, {name}?\n{QUICK.format(name)}", user=name
        )
        for name in ("ann", "bob", "cay")
    ]
    other = await post_answered_turn(theirs, f"fleuve Loire\n{QUICK.format('ann')}")
    await post_answered_turn(gateway, f"fleuve Loire\n{QUICK.format('dee')}", store=False)
    in_japanese = await post_answered_turn(
        gateway, f"東京の天気は?\n{QUICK.format('x')}", session="weather", create_session=True
    )
    newest_first = rivers[::-1]
    assert await search_turns(gateway, "tailracetm fleuve") == await search_turns(gateway, "TAILRACE™") == newest_first
    assert await search_turns(gateway, "ou LOIRE", user="bob") == [rivers[1]]
    answer = (await gateway.client.get(f"/v1/turns/{rivers[0]}")).json()["text"]
    assert await search_turns(gateway, " ".join(answer.split()[:30])) == [rivers[0]]
    assert await search_turns(gateway, "天気") == [in_japanese]
    assert await search_turns(theirs, "Loire") == [other]
    for nothing in ("Loire Rhine", "Loir", '"Loire" -zzz', "loire OR zzz"):
        assert (nothing, await search_turns(gateway, nothing)) == (nothing, [])
    assert await search_turns(gateway, "(loire*)") == newest_first
    assert await search_turns(gateway, "Loire", to="2020-01-01") == []
    assert await search_turns(gateway, "Loire", **{"from": "2020-01-01"}) == newest_first
    pages, after = list[str](), dict[str, str]()
    while True:
        page = (await gateway.client.get("/v1/turns", params={"q": "loire", "limit": 1, **after})).json()
        pages += [turn["turn"] for turn in page["data"]]
        if page["next"] is None:
            break
        after = {"after": page["next"]}
    assert pages == newest_first
    for wrong in ({"q": ""}, {"q": "?!"}, {"q": "loire", "status": "running"}):
        refused = await gateway.client.get("/v1/turns", params=wrong)
        assert refused.status_code == 400, refused.text
    assert (await gateway.client.delete(f"/v1/turns/{rivers[2]}")).status_code == 200
    assert (await gateway.client.delete("/v1/users?user=bob")).json()["turns"] == 1
    assert await search_turns(gateway, "Loire") == [rivers[0]]


async def test_hostile_text_is_stored_and_listed_as_it_was_sent(gateway: Gateway) -> None:
    """In questions, metadata, titles of sessions and names of files. Both databases accept and refuse the same."""
    turns = {}
    for text in HOSTILE:
        turns[
            await post_answered_turn(gateway, QUICK.format("x") + text, metadata={"m": text, f"n{text}"[:64]: "v"})
        ] = text
    for turn in (await gateway.client.get("/v1/turns")).json()["data"]:
        text = turns.pop(turn["turn"])
        assert turn["metadata"] == {"m": text, f"n{text}"[:64]: "v"}
        assert turn["input"][0]["content"].endswith(text)
    assert turns == {}
    listed = [text for text in HOSTILE if "\0" not in text]
    for text in HOSTILE:
        answer = await gateway.client.get("/v1/turns", params={"metadata[m]": text})
        assert [turn["metadata"]["m"] for turn in answer.json()["data"]] == ([text] if text in listed else [])
        session = (await gateway.client.post("/v1/sessions", json={"title": text})).json()["id"]
        assert (await gateway.client.get(f"/v1/sessions/{session}")).json()["title"] == text
    sums = (await gateway.client.get("/v1/usage?by=metadata.m")).json()["data"]
    assert {one["key"]: one["turns"] for one in sums} == dict.fromkeys([*listed, None][: len(sums)], 1)
    lone = b'{"message": "x", "metadata": {"a": "\\ud800"}}'
    assert (await gateway.client.post("/v1/turns", content=lone, headers=JSON)).status_code == 400
    file = {"file": ("\1 '\"\\.txt", b"x", "text/plain")}
    kept = (await gateway.client.post("/v1/files", files=file, data={"purpose": "user_data"})).json()
    assert (await gateway.client.get(f"/v1/files/{kept['id']}")).json()["filename"] == kept["filename"]
