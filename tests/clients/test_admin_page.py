"""The page `/admin` in Chromium and Firefox: who may open it, the keyboard, a phone, other operators, lost answers."""

import asyncio
import csv
import io
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tailrace.deploy.cli.keys import create
from tailrace.deploy.local.nats_server import NatsServer
from tailrace.features.admin.administration import Administration
from tailrace.features.admin.audit_log import Actor
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import Connection, TurnLog
from tests.clients import node
from tests.features.usage.test_filters import FIRST, LAST, counts_of_rows, record_500_turns
from tests.harness.open_store import open_store
from tests.harness.persistence_in_loop import Persistence
from tests.harness.stored_turns import OURS
from tests.harness.turn_builder import MODEL
from tests.harness.turn_writer import write_turn
from tests.harness.until import until, until_equal
from tests.integration.conftest import Gateway, NewGateway

ACME = Tenant("acme")
HOSTILE = "<img src=x onerror='globalThis.ran = 1'>"
NO_NAMES = ("\N{EN DASH}", "\N{EN DASH}")
LINKS = ["/", "/guides", "/docs", "/ops", "/admin"]
NOT_ADMIN = "This key has not the scope `admin`, so it cannot open this page. Enter one that has it."
INVALID = "This key is not valid: it was revoked, has expired, or is mistyped. Enter another one."


class Company:
    """A gateway with the turns of two tenants, an admin key and a key of a tenant."""

    def __init__(self, gateway: Gateway, admin: str, theirs: str) -> None:
        self.gateway = gateway
        self.admin = admin
        self.theirs = theirs


@pytest.fixture
async def company(
    own_server: NatsServer, own_log: TurnLog, new_gateway: NewGateway, tmp_path: Path
) -> AsyncIterator[Company]:
    async with Persistence(own_server.url, tmp_path / "tailrace.db"):
        admin, _ = await create(own_server.url, Tenant("operators"), "me", ["admin"])
        theirs, _ = await create(own_server.url, ACME, HOSTILE, ["read", "write", "manage", "operate"])
        poor, _ = await create(own_server.url, ACME, "poor", ["read", "write"], {"usd_day": 5})
        key = poor.record.id
        await write_turn(own_log, "a", tenant=ACME, user=HOSTILE, metadata={"team": "=1+1"}, by=key)
        await write_turn(own_log, "b", tenant=ACME, user="ann", metadata={"team": "red"}, by=theirs.record.id)
        await write_turn(own_log, "c", tenant=Tenant("zeta"))
        gateway = await new_gateway(own_server.url)
        headers = {"authorization": f"Bearer {admin.secret}"}

        async def is_recorded() -> bool:
            page = await gateway.client.get("/v1/admin/usage?by=day", headers=headers)
            return bool(page.is_success and page.json()["total"]["turns"] == 3)

        await until(is_recorded)
        limits = {"limits": {"usd_month": 0.0001}}
        (await gateway.client.put("/v1/admin/tenants/acme/limits", json=limits, headers=headers)).raise_for_status()
        yield Company(gateway, admin.secret, theirs.secret)


@pytest.mark.parametrize("each_browser", ["CHROMIUM", "FIREFOX"], indirect=True)
async def test_only_a_key_with_the_scope_admin_opens_the_page_which_keeps_it_in_the_tab(
    company: Company, each_browser: dict[str, Any]
) -> None:
    """Another key gets a sentence. The key is kept over a reload, until it is forgotten."""
    steps = "login", company.gateway.url, company.theirs, company.admin
    (seen,) = await node.run("admin-page.mjs", *steps, **each_browser)
    assert seen == {
        "said": [INVALID, NOT_ADMIN],
        "current": ["Admin", "Spend"],
        "links": LINKS,
        "complaints": [],
        "elsewhere": [],
    }


@pytest.mark.timeout(150)
@pytest.mark.parametrize("each_browser", ["CHROMIUM", "FIREFOX"], indirect=True)
async def test_a_key_is_created_rotated_and_revoked_and_limits_are_set_without_a_mouse(
    company: Company, each_browser: dict[str, Any]
) -> None:
    """A secret is shown once, a revocation is confirmed, and a budget below what is spent has a warning."""
    (seen,) = await node.run(
        "admin-page.mjs", "keyboard", company.gateway.url, company.admin, deadline_s=120, **each_browser
    )
    first, second = seen["first"], seen["second"]
    assert first.startswith("tr_")
    assert second.startswith("tr_")
    assert first != second
    assert (seen["isOpen"], seen["kept"]) == (True, ["", "new-key"])
    name, tenant, rights, limits, month, last, state, _ = seen["created"]
    assert name.startswith("<b>by keyboard</b>\nkey_")
    assert (tenant, rights, limits, month, last) == ("orion", "manage, read, write", "$0.5 a month", "$0.00", "never")
    assert state.startswith("valid until ")
    assert seen["asked"].startswith("\N{LEFT DOUBLE QUOTATION MARK}<b>by keyboard</b>")
    assert seen["isBack"] == "Revoke <b>by keyboard</b> of orion"
    assert seen["focused"] == "keys-title"
    assert seen["warning"].endswith("is spent already: $0.00001 a month is less.")
    assert "New turns are refused until then." in seen["done"]
    assert "The limits of acme are set: $0.00001 a month." in seen["done"]
    assert seen["users"] == ["The users of acme are private.", "private"]
    assert (seen["complaints"], seen["elsewhere"]) == ([], [])

    async def statuses() -> list[int]:
        """Of the key and of its successor, one of which is revoked."""
        bearers = [{"authorization": f"Bearer {key}"} for key in (first, second)]
        return sorted([(await company.gateway.client.get("/v1/limits", headers=one)).status_code for one in bearers])

    await until_equal(statuses, [200, 401])


async def test_the_page_says_that_the_model_refuses_the_key(company: Company, browser: str) -> None:
    (seen,) = await node.run("admin-page.mjs", "health", company.gateway.url, company.admin, CHROMIUM=browser)
    assert seen["said"] == "The server is degraded: the model refuses the API key. What to do: the RUNBOOK."
    assert (seen["link"], seen["after"], seen["complaints"]) == ("/guides/RUNBOOK", "", [])


@pytest.mark.timeout(150)
@pytest.mark.parametrize("each_browser", ["CHROMIUM", "FIREFOX"], indirect=True)
async def test_a_click_leads_from_a_sum_to_its_rows_and_to_its_costliest_turns(
    company: Company, own_log: TurnLog, each_browser: dict[str, Any]
) -> None:
    """The address has what is shown: the back button and another operator see the same rows. The CSV has the rows."""
    headers = {"authorization": f"Bearer {company.theirs}"}
    deleted = await write_turn(own_log, "d", tenant=ACME, user="bob")

    async def turns() -> int:
        page = await company.gateway.client.get("/v1/usage", headers=headers)
        return int(page.json()["total"]["turns"])

    await until_equal(turns, 3)
    (await company.gateway.client.delete(f"/v1/turns/{deleted.turn}", headers=headers)).raise_for_status()
    steps = "drill", company.gateway.url, company.admin
    (seen,) = await node.run("admin-page.mjs", *steps, deadline_s=120, **each_browser)
    assert {row[0]: row[2] for row in seen["users"]} == {HOSTILE: "1", "ann": "1", "bob": "1"}
    assert "deleted, erased or not stored" in seen["note"]
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    assert [row[0] for row in seen["models"]] == [MODEL]
    assert {name: seen["fields"][name] for name in ("tenant", "by", "user")} == {
        "tenant": "acme",
        "by": "model",
        "user": "ann",
    }
    ((turn, cost, _, _, model, user, session, _),) = seen["turns"]
    assert (cost, model, user, bool(session)) == (seen["models"][0][1], MODEL, "ann", True)
    assert seen["link"] == f"/turns/{turn}"
    assert (seen["back"], seen["backFields"]) == (seen["models"], "model")
    assert seen["headings"][:4] == ["day", "model", "Cost", "Turns"]
    assert {(row[0], row[1]): row[3] for row in seen["pairs"]} == {(today, MODEL): "2", NO_NAMES: "1"}
    assert (seen["unnamed"], seen["names"]) == (0, [f"{today}, {MODEL}"])
    assert "are in no row and no sum." in seen["lost"]
    assert "60 days" in seen["refused"]
    assert seen["left"] == [0, ""]
    assert seen["bars"][-1].startswith(f"{datetime.now(UTC):%A}, {today}: $")
    heading, *lines = csv.reader(io.StringIO(seen["csv"]))
    assert heading[:3] == ["day", "model", "turns"]
    assert [line[:3] for line in lines] == [["-", "-", "1"], [today, MODEL, "2"]]
    assert ({row[0]: row[2] for row in seen["bar"]}, seen["barDays"]) == ({MODEL: "3"}, [today, today])
    assert seen["firstDay"] == [seen["firstDay"][0]] * 3 != [today] * 3
    assert seen["keyboard"] == seen["bar"]
    assert seen["shared"] == seen["turns"]
    assert ({row[0] for row in seen["whole"]}, seen["ofAll"]) == ({"acme", "zeta"}, [True, True])
    assert (seen["complaints"], seen["elsewhere"]) == ([], [])


@pytest.mark.rule("R90")
@pytest.mark.timeout(150)
async def test_all_groupings_and_pairs_of_500_mixed_turns_have_one_sum_on_the_page_and_in_its_csv(
    own_server: NatsServer, new_gateway: NewGateway, tmp_path: Path, browser: str
) -> None:
    """With kills, turns with `store: false`, deletions and erasures, on several days."""
    database = tmp_path / "tailrace.db"
    async with Persistence(own_server.url, database):
        admin, _ = await create(own_server.url, Tenant("operators"), "me", ["admin"])
        gateway = await new_gateway(own_server.url)
        async with open_store(database, busy_timeout_s=5) as store:
            turns, _, input_tokens, output_tokens, *_, nano_usd = counts_of_rows(
                [one for part in await record_500_turns(random.Random(7), store) for one in part]
            )
        steps = "sums", gateway.url, admin.secret, OURS, FIRST, LAST
        (seen,) = await node.run("admin-page.mjs", *steps, deadline_s=140, CHROMIUM=browser)
    above = (
        f"${nano_usd / 1e9:.2f} \N{MIDDLE DOT} {turns:,} turns \N{MIDDLE DOT} {input_tokens + output_tokens:,} tokens"
    )
    assert len(seen["tables"]) == 7 + 21
    for table in seen["tables"]:
        heading, *lines = csv.reader(io.StringIO(table["csv"]))
        row = [dict(zip(heading, line, strict=True)) for line in lines]
        sums = [sum(int(one[name]) for one in row) for name in ("turns", "input_tokens", "output_tokens")]
        assert (table["groups"], sums) == (table["groups"], [turns, input_tokens, output_tokens])
        assert sum(round(float(one["cost_usd"]) * 1e9) for one in row) == nano_usd
        assert table["sums"] == [len(lines), *sums]
        assert table["total"].startswith(above)
    assert (seen["complaints"], seen["elsewhere"]) == ([], [])


@pytest.mark.timeout(240)
async def test_each_section_shows_its_numbers_on_a_desktop_and_a_phone_without_a_violation_of_axe(
    company: Company, browser: str, pictures: Path
) -> None:
    """Names of users and keys enter the page as text. All pages have one header, which marks the current page."""
    steps = "states", company.gateway.url, company.admin, pictures
    (seen,) = await node.run("admin-page.mjs", *steps, deadline_s=220, CHROMIUM=browser)
    assert "\n".join(seen["violations"]) == ""
    assert (seen["wide"], seen["complaints"], seen["elsewhere"]) == ([], [], [])
    assert seen["lines"] == []
    # Whether the first tab is in view, and the last one, which is shown; and whether an edge shows that there are more.
    assert seen["tabs"] == {"desktop": [True, True, True], "phone": [False, True, True]}
    shown = seen["shown"]
    assert (shown["made"], shown["bars"], shown["days"]) == (0, 30, 30)
    assert shown["plot"].startswith("Cost by day from ")
    by_tenant = {row[0]: row[2] for row in shown["spend"]}
    assert by_tenant == {"acme": "2", "zeta": "1"}
    for by, groups in (("user", {HOSTILE, "ann"}), ("metadata", {"=1+1", "red"})):
        assert {row[0] for row in shown[f"spend?tenant=acme&by={by}"]} == groups
    assert {row[0].partition("\n")[2] for row in shown["spend?tenant=acme&by=key"]} == {HOSTILE, "poor"}
    assert [row[2] for row in shown["spend?by=day"]] == ["3"]
    tenants = {row[0]: row[1:3] for row in shown["tenants"]}
    assert tenants["acme"] == ["shared", "$0.0001 a month"]
    names = {row[0].partition("\n")[0]: row for row in shown["keys?state=all"]}
    assert set(names) == {"me", "poor", HOSTILE}
    assert (names["me"][5], names["poor"][5] != "never") == ("never", True)
    ((tenant, owner, budget, share, *_),) = shown["limits"]
    assert (tenant, owner, budget, share) == ("acme", "the tenant", "$0.0001 a month", "100 %")
    actions = [row[1] for row in shown["audit"]]
    assert actions == ["Limits set", "Key created", "Key created", "Key created"]
    assert shown["audit"][0][3] == "usd_month: none \N{RIGHTWARDS ARROW} 0.0001"
    assert seen["headers"] == {path: ["Chat Guides API Operations Admin", path] for path in LINKS}


@pytest.mark.timeout(180)
@pytest.mark.parametrize("each_browser", ["CHROMIUM", "FIREFOX"], indirect=True)
async def test_many_keys_come_in_pages_and_a_lost_answer_or_a_revoked_key_is_said(
    company: Company, own_connection: Connection, own_server: NatsServer, each_browser: dict[str, Any]
) -> None:
    """A read is repeated when the gateway is back. A change is not, because it may have been made."""
    administration = Administration(own_connection)
    actor = Actor("command line", "test")
    for number in range(70):
        await administration.create_key(actor, ACME, f"key {number}", ["read"])
    (mine,) = [key for key in await administration.list_keys() if "admin" in key.scopes]
    await create(own_server.url, Tenant("operators"), "other", ["admin"])
    running = asyncio.create_task(
        node.run("admin-page.mjs", "obstacles", company.gateway.url, company.admin, deadline_s=150, **each_browser)
    )

    async def is_lost() -> bool:
        return running.done() or any(key.name == "lost" for key in await administration.list_keys())

    await until(is_lost, 100)
    await administration.revoke_key(actor, mine.id, may_be_last=True)
    (seen,) = await running
    assert seen["counts"] == [50, 74]
    assert seen["found"] == [f"key {number}" for number in (7,)]
    assert seen["away"].startswith("The connection is lost: the server cannot be reached.")
    assert seen["lost"].startswith("The connection was lost, so it is not known whether the change was made.")
    assert (seen["isRefused"], seen["said"]) == (True, INVALID)
    assert (seen["complaints"], seen["elsewhere"]) == ([], [])
