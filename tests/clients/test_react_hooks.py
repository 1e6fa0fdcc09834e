"""web/react.js in Chromium, in StrictMode, besides what the client matrix tests."""

import pytest

from tests.clients.conftest import count_turns, read_stored_text
from tests.clients.matrix import run_hooks
from tests.harness.generator_in_loop import words
from tests.integration.conftest import Gateway

LONG = "#sim words=4000 rate=50"
TEXT = words(4000)


@pytest.mark.proves("tailrace", "resumes after a reload, in StrictMode", "useTurn (Chromium)")
@pytest.mark.proves("tailrace", "cancel", "useTurn (Chromium)")
@pytest.mark.proves("tailrace", "resumes after a reload, in StrictMode", "useSession (Chromium)")
@pytest.mark.proves("tailrace", "several readers", "useSession (Chromium)")
async def test_turns_and_sessions_are_shown_once_after_a_reload_and_in_two_tabs(
    open_gateway: Gateway, browser: str
) -> None:
    """A turn goes on without its component. A session does not exist before its first question: both tabs wait for it.

    Without HTTP/2, six hidden pages with idle sessions would otherwise keep every other page from loading.
    """
    line, following = "#sim words=100 rate=25", "#sim words=20 rate=50"
    tabs = {"component": "Session", "session": "holiday-plans", "line": line, "next": following}
    hidden = {"component": "Session", "session": "hidden", "line": "#sim words=3 rate=0 wait=6", "next": following}
    before = await count_turns(open_gateway)
    turn = {"component": "Turn", "line": LONG}
    of_turn, of_session, of_hidden = await run_hooks(
        open_gateway.url, ("turn", turn), ("tabs", tabs), ("hidden", hidden), key=""
    )
    # StrictMode runs the effect that asks twice, and a person clicks twice.
    assert of_turn["posts"] == 1
    assert await count_turns(open_gateway) == before + 5
    for one in (of_turn["first"], of_turn["again"], of_turn["stopped"]):
        assert TEXT.startswith(one["text"])
        assert (one["turn"], one["texts"]) == (of_turn["first"]["turn"], [one["text"]])
        assert (one["end"], one["error"]) == (None, None)
    assert (of_turn["again"]["state"], of_turn["stopped"]["state"], of_turn["running"]) == ("live", "ended", "running")
    record = (await open_gateway.client.get(f"/v1/turns/{of_turn['first']['turn']}")).json()
    assert (of_turn["cancelled"]["end"]["outcome"], record["outcome"]) == ("cancelled", "cancelled")
    assert of_turn["cancelled"]["texts"] == [record["text"]]

    assert of_session["turn"] == of_session["same"]
    # Chromium logs each request with an error status: the tabs of a new session have none.
    assert (of_session["errors"], of_session["early"]) == ([], "live")
    error = of_session["error"]
    assert (of_session["refused"], error["status"], error["code"]) == (None, 409, "session_busy")
    assert of_session["streams"] == ["/v1/sessions/holiday-plans/events"]
    for tab in (of_session["first"], of_session["second"]):
        assert (tab["state"], tab["error"], tab["texts"]) == ("live", None, [words(100), words(20)])
        assert [turn["input"][0]["content"] for turn in tab["turns"]] == [line, following]
        assert tab["turns"][0]["turn"] == of_session["turn"]
    assert await read_stored_text(open_gateway, of_session["turn"]) == words(100)

    # The stream of the hidden page is closed after the answer, and continued when the page is shown.
    assert of_hidden["first"] == of_hidden["resting"] == [words(3)]
    assert (of_hidden["second"], of_hidden["state"], of_hidden["streams"]) == ([words(3), words(20)], "live", 1)


async def test_a_message_is_put_into_a_running_answer_and_is_the_next_question_otherwise(
    open_gateway: Gateway, browser: str
) -> None:
    """The text is that of the new answer, also if the message came after the end of the answer before."""
    given = {"line": LONG, "next": "#sim words=20 rate=50"}
    turn, session = await run_hooks(
        open_gateway.url,
        ("steer", {"component": "Turn", **given}),
        ("steerSession", {"component": "Session", "session": "steered", **given}),
        key="",
    )
    first, second = turn["made"]
    assert (first["steered"] is None, second["steered"]) == (False, None)
    for made, shown in ((first, turn["first"]), (second, turn["second"])):
        assert (shown["turn"], shown["texts"], shown["error"]) == (made["turn"], [words(20)], None)
        assert shown["end"]["outcome"] == "completed"
    assert [one["turn"] for one in session["turns"]] == session["made"]
    assert [one["outcome"] for one in session["turns"]] == ["cancelled", "completed"]
    assert [one["input"][0]["content"] for one in session["turns"]] == [given["line"], given["next"]]
    assert (session["texts"][1], session["error"]) == (words(20), None)


async def test_a_refused_request_is_an_error_of_the_question(open_gateway: Gateway, browser: str) -> None:
    """A cancel, two questions on their way, a question of a session that was left, and a page of earlier turns."""
    short = {"message": "#sim words=1", "session": "failed-page", "create_session": True}
    for _ in range(2):
        accept = {"accept": "text/event-stream"}
        (await open_gateway.client.post("/v1/turns", json=short, headers=accept)).raise_for_status()
    cancelled, pending, moved, earlier = await run_hooks(
        open_gateway.url,
        ("uncancelled", {"component": "Turn", "line": LONG}),
        ("pending", {"component": "Session", "session": "two-questions"}),
        ("moved", {"component": "Session", "session": "left", "line": "late"}),
        ("earlier", {"component": "Session", "session": "failed-page", "line": "#sim words=160 rate=40"}),
        key="",
    )
    # `cancel` of `useTurn` returns null then, as that of `useSession` does, and the turn is read on.
    assert (cancelled["cancelled"], cancelled["shown"]["error"]["status"]) == (None, 500)
    assert (cancelled["later"]["state"], cancelled["later"]["error"]["status"]) == ("live", 500)
    assert (cancelled["end"]["end"]["outcome"], cancelled["end"]["error"]) == ("cancelled", None)
    # A second click asks nothing, although another question has its answer.
    assert pending["posts"] == 2
    # A late refusal is not shown in another session.
    assert (moved["asked"], moved["error"]) == (None, None)
    # Earlier turns can be read again after a failure while a turn ended.
    assert (earlier["error"]["status"], earlier["hasEarlier"], len(earlier["turns"])) == (500, True, 2)


async def test_an_answer_is_asked_for_again_and_a_question_edited_with_its_file(gateway: Gateway, browser: str) -> None:
    """The newest branch is shown, or the one that the user has chosen, which the next question continues."""
    short = {"line": "#sim words=5 rate=0", "next": "#sim words=6 rate=0", "edited": "#sim words=7 rate=0"}
    [seen] = await run_hooks(gateway.url, ("branches", {"component": "Session", **short}))
    first, following, again, edited, late = seen["turns"]
    assert seen["error"] is None
    assert seen["shown"] == [[again], [edited], [first, following], [first, following, late]]
    assert (seen["siblings"], seen["branches"]) == ([first, again, edited], [[edited], [again], [first, following]])
    [file, text] = seen["input"][0]["content"]
    assert (file["type"], file["source"]["data"], text["text"]) == ("document", "A river.", short["edited"])


async def test_calls_that_wait_are_decided_in_two_tabs(gateway: Gateway, browser: str) -> None:
    tools = [{"name": name, "input_schema": {"type": "object"}} for name in ("look", "smell")]
    given = {"component": "Session", "line": "#sim words=2 rate=0 tool=look,smell", "defaults": {"tools": tools}}
    [seen] = await run_hooks(gateway.url, ("calls", given))
    assert (seen["names"], len(seen["waits"]), seen["rest"]) == (["look", "smell"], 1, 1)
    assert (seen["refused"], seen["code"], seen["turns"][1]) == (None, "call_not_found", seen["next"])


@pytest.mark.parametrize("without", [None, "locks", "indexedDB"])
async def test_questions_without_a_network_are_sent_once_in_order_when_it_is_back(
    gateway: Gateway, browser: str, without: str | None
) -> None:
    """Over a reload, and from two tabs, also without Web Locks: then both send them, with the same keys.

    Without IndexedDB, as in some private windows, the page that has the questions sends them.
    """
    given = {"component": "Session", "offline": "ann", "line": "#sim words=4 rate=0", "next": "#sim words=5 rate=0"}
    [seen] = await run_hooks(gateway.url, ("offline", {**given, "without": without}))
    is_stored = without != "indexedDB"
    assert seen["kept"] == [[given["line"], is_stored], [given["next"], is_stored]]
    assert seen["tabs"] == [[words(4), words(5)]] * (2 if is_stored else 1)
    assert (seen["after"], await count_turns(gateway)) == ([], 2)


async def test_a_session_that_another_client_deletes_leaves_the_page_and_begins_again(
    gateway: Gateway, browser: str
) -> None:
    given = {"component": "Session", "session": "taken", "line": "#sim words=4 rate=0", "next": "#sim words=5 rate=0"}
    (seen,) = await run_hooks(gateway.url, ("deleted", given))
    assert seen == {"unknown": 1, "refused": "session_not_found", "again": [words(5)]}


async def test_questions_that_the_browser_cannot_keep_or_the_server_refuses_block_no_others(
    gateway: Gateway, browser: str
) -> None:
    """A full disk, too many questions, a deleted session, an invalid question, a revoked key: the user sees each."""
    given = {"component": "Session", "offline": "ann", "line": "#sim words=4 rate=0", "next": "#sim words=5 rate=0"}
    full, undeliverable = await run_hooks(
        gateway.url, ("full", given), ("undeliverable", {**given, "session": "deleted", "offline": "bob"})
    )
    assert (full["isStored"], full["refused"], full["code"], full["waiting"]) == (False, None, "outbox_full", 100)
    assert full["texts"] == [words(4)]
    assert undeliverable == {
        "held": 401,
        "refused": "session_not_found",
        "invalid": "request_invalid",
        "other": [words(5)],
        "still": "session_not_found",
        "gone": [],
    }
