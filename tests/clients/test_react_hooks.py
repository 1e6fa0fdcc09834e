"""web/react.js in Chromium, in StrictMode, besides what the client matrix tests."""

import pytest

from tests.clients.conftest import read_stored_text
from tests.clients.matrix import run_hooks
from tests.harness.generator_in_loop import words
from tests.integration.conftest import Gateway

LONG = "#sim words=4000 rate=50"
TEXT = words(4000)


async def turns_of(gateway: Gateway) -> int:
    """Returns how many turns the tests of this gateway's tenant have paid so far."""
    days = (await gateway.client.get("/v1/usage")).json()["data"]
    return sum(day["turns"] for day in days)


@pytest.mark.proves("tailrace", "resumes after a reload, in StrictMode", "useTurn (Chromium)")
@pytest.mark.proves("tailrace", "cancel", "useTurn (Chromium)")
async def test_a_turn_is_resumed_after_a_reload_and_goes_on_without_its_component(
    open_gateway: Gateway, browser: str
) -> None:
    before = await turns_of(open_gateway)
    seen = await run_hooks("turn", open_gateway.url, key="", component="Turn", line=LONG)
    for one in (seen["first"], seen["again"], seen["stopped"]):
        assert TEXT.startswith(one["text"])
        assert (one["turn"], one["texts"], one["end"], one["error"]) == (
            seen["first"]["turn"],
            [one["text"]],
            None,
            None,
        )
    # StrictMode runs the effect that asks twice, and a person clicks twice.
    assert seen["posts"] == 1
    assert (seen["again"]["state"], seen["stopped"]["state"], seen["running"]) == ("live", "ended", "running")
    record = (await open_gateway.client.get(f"/v1/turns/{seen['first']['turn']}")).json()
    assert (seen["cancelled"]["end"]["outcome"], record["outcome"]) == ("cancelled", "cancelled")
    assert seen["cancelled"]["texts"] == [record["text"]]
    assert await turns_of(open_gateway) == before + 1


@pytest.mark.proves("tailrace", "resumes after a reload, in StrictMode", "useSession (Chromium)")
@pytest.mark.proves("tailrace", "several readers", "useSession (Chromium)")
async def test_a_session_is_shown_in_two_tabs_over_one_connection_each(open_gateway: Gateway, browser: str) -> None:
    """It does not exist before its first question. One tab is reloaded during the answer."""
    given = {"component": "Session", "session": "holiday-plans"}
    line, following = "#sim words=100 rate=25", "#sim words=20 rate=50"
    before = await turns_of(open_gateway)
    seen = await run_hooks("tabs", open_gateway.url, key="", line=line, next=following, **given)
    assert seen["turn"] == seen["same"]
    assert (seen["refused"], seen["error"]["status"], seen["error"]["code"]) == (None, 409, "session_busy")
    assert seen["streams"] == ["/v1/sessions/holiday-plans/events"]
    for tab in (seen["first"], seen["second"]):
        assert (tab["state"], tab["error"], tab["texts"]) == ("live", None, [words(100), words(20)])
        assert [turn["input"][0]["content"] for turn in tab["turns"]] == [line, following]
        assert tab["turns"][0]["turn"] == seen["turn"]
    assert await read_stored_text(open_gateway, seen["turn"]) == words(100)
    assert await turns_of(open_gateway) == before + 2


async def test_a_refused_cancel_is_the_error_of_the_turn_which_is_read_on(open_gateway: Gateway, browser: str) -> None:
    """`cancel` of `useTurn` returns null then, as that of `useSession` does."""
    seen = await run_hooks("uncancelled", open_gateway.url, key="", component="Turn", line=LONG)
    assert (seen["cancelled"], seen["shown"]["error"]["status"]) == (None, 500)
    assert (seen["later"]["state"], seen["later"]["error"]["status"]) == ("live", 500)
    assert (seen["end"]["end"]["outcome"], seen["end"]["error"]) == ("cancelled", None)


async def test_a_second_click_asks_nothing_although_another_question_has_its_answer(
    open_gateway: Gateway, browser: str
) -> None:
    seen = await run_hooks("pending", open_gateway.url, key="", component="Session", session="two-questions")
    assert seen["posts"] == 2


async def test_a_late_refusal_is_not_shown_in_another_session(open_gateway: Gateway, browser: str) -> None:
    seen = await run_hooks("moved", open_gateway.url, key="", component="Session", session="left", line="late")
    assert (seen["asked"], seen["error"]) == (None, None)


async def test_earlier_turns_can_be_read_again_after_a_failure_while_a_turn_ended(
    open_gateway: Gateway, browser: str
) -> None:
    session = "failed-page"
    short = {"message": "#sim words=1", "session": session, "create_session": True}
    for _ in range(2):
        async with open_gateway.client.stream(
            "POST", "/v1/turns", json=short, headers={"accept": "text/event-stream"}
        ) as answer:
            await answer.aread()
    line = "#sim words=160 rate=40"
    seen = await run_hooks("earlier", open_gateway.url, key="", component="Session", session=session, line=line)
    assert (seen["error"]["status"], seen["hasEarlier"], len(seen["turns"])) == (500, True, 2)
