"""`tailrace usage` with filters and two groupings, and the costliest turns of a tenant, for it and for operators."""

import csv
import io
from collections.abc import AsyncIterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest

from tailrace.deploy.cli.keys import create
from tailrace.deploy.local.nats_server import NatsServer
from tailrace.proto.entries import Message
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import TurnLog
from tests.harness.forks import run_command
from tests.harness.persistence_in_loop import Persistence
from tests.harness.turn_builder import MODEL
from tests.harness.turn_writer import write_turn
from tests.harness.until import until_equal
from tests.harness.utc_day import long_day
from tests.integration.conftest import NewGateway

ACME, ZETA = Tenant("acme"), Tenant("zeta")
SECRET_WORD = "quicksand"


class Shop:
    """Turns of two tenants, one of them deleted, with the environments that name persistence and a gateway."""

    def __init__(self, client: httpx2.AsyncClient, nats_url: str, admin: str, theirs: str, day: date) -> None:
        """`day` is that of the turns."""
        self.client = client
        self.day = day
        self.admin = admin
        self.theirs = theirs
        url = str(client.base_url)
        self.nats = {"TAILRACE_NATS_URL": nats_url}
        self.as_operator = {"TAILRACE_URL": url, "TAILRACE_KEY": admin}
        self.as_tenant = {"TAILRACE_URL": url, "TAILRACE_KEY": theirs}

    async def get(self, path: str, key: str | None = None) -> httpx2.Response:
        return await self.client.get(path, headers={"authorization": f"Bearer {key or self.admin}"})


@pytest.fixture
async def shop(
    own_server: NatsServer, own_log: TurnLog, new_gateway: NewGateway, tmp_path: Path
) -> AsyncIterator[Shop]:
    day = await long_day()
    async with Persistence(own_server.url, tmp_path / "tailrace.db"):
        admin, _ = await create(own_server.url, Tenant("operators"), "me", ["admin", "read"])
        theirs, _ = await create(own_server.url, ACME, "theirs", ["read", "write", "manage"])
        by = theirs.record.id
        for text, user, team in (("a", "ada", "red"), ("b", "ada", "blue"), ("c", "bob", "red")):
            messages = [Message("user", f"{SECRET_WORD} {text}")]
            await write_turn(own_log, text, tenant=ACME, user=user, metadata={"team": team}, by=by, messages=messages)
        gone = await write_turn(own_log, "d", tenant=ACME, user="ada")
        await write_turn(own_log, "e", tenant=ZETA)
        gateway = await new_gateway(own_server.url)
        made = Shop(gateway.client, own_server.url, admin.secret, theirs.secret, day)

        async def turns() -> int:
            return int((await made.get("/v1/admin/usage?by=day")).json()["total"]["turns"])

        await until_equal(turns, 5)
        headers = {"authorization": f"Bearer {theirs.secret}"}
        (await gateway.client.delete(f"/v1/turns/{gone.turn}", headers=headers)).raise_for_status()
        yield made


async def run(*arguments: str, **environ: str) -> list[str]:
    ran = await run_command(*arguments, **environ)
    assert (ran.status, ran.err) == (0, "")
    return ran.out.splitlines()


async def rows_of(*arguments: str, **environ: str) -> list[list[str]]:
    """Returns the rows of a table, by columns, without its caption and headings."""
    return [line.split() for line in (await run("usage", *arguments, **environ))[2:]]


@pytest.mark.rule("R90")
@pytest.mark.timeout(60)
async def test_what_a_user_cost_by_model_and_why_a_day_was_expensive(shop: Shop) -> None:
    """Over NATS and over HTTP. Each table sums to the same total, with a row for the deleted turn."""
    today = str(shop.day)
    days = "--from", today, "--to", today
    for environ, of in (
        (shop.nats, ("--tenant", "acme")),
        (shop.as_operator, ("--tenant", "acme")),
        (shop.as_tenant, ()),
    ):
        caption, headings, *_ = await run("usage", *of, "--by", "model", "--user", "ada", *days, **environ)
        assert caption == f"usage of tenant acme, {today} to {today} (UTC), user ada"
        assert headings.split()[:2] == ["MODEL", "TURNS"]
        by_model = await rows_of(*of, "--by", "model", "--user", "ada", *days, **environ)
        assert [row[:2] for row in by_model] == [["-", "1"], [MODEL, "2"], ["all", "3"]]
        by_both = await rows_of(*of, "--by", "user,metadata.team", *days, **environ)
        assert [row[:3] for row in by_both[:-1]] == [
            *(["-", "-", "1"], ["ada", "blue", "1"], ["ada", "red", "1"], ["bob", "red", "1"])
        ]
        assert by_both[-1][:2] == ["all", "4"]
        filtered = await rows_of(*of, "--by", "day", "--metadata", "team=red", "--user", "ada", **environ)
        assert [row[:2] for row in filtered] == [[today, "1"], ["all", "1"]]
        totals = [(await rows_of(*of, "--by", by, *days, **environ))[-1] for by in ("day", "user", "day,model")]
        assert totals == [totals[0]] * 3
        heading, *lines = csv.reader(await run("usage", *of, "--by", "day,key", "--csv", **environ))
        assert heading[:4] == ["day", "key", "key_name", "turns"]
        assert [line[3] for line in lines] == ["1", "3"]
        (printed,) = await run("usage", *of, "--by", "day,user", "--json", **environ)
        assert [one["keys"] for one in msgspec.json.decode(printed)] == [[None, None], [today, "ada"], [today, "bob"]]
        turns = (await run("turns", "--costliest", "--user", "ada", **shop.as_tenant))[1:]
        assert [line.split()[3:5] for line in turns] == [[MODEL, "ada"]] * 2
        assert all(SECRET_WORD in line for line in turns)


@pytest.mark.timeout(60)
async def test_the_command_names_the_tenant_and_those_that_have_usage(shop: Shop) -> None:
    """A tenant's key learns no other tenant."""
    has = "tenants with turns on these days: acme, zeta (--tenant NAME)"
    for arguments, environ, last in (
        ((), shop.nats, f"tenant local: no turn has ended on these days; {has}"),
        ((), shop.as_operator, f"tenant operators: no turn has ended on these days; {has}"),
        (("--user", "eve"), shop.as_tenant, "tenant acme: no turn with these labels has ended on these days"),
        (
            ("--tenant", "acme", "--user", "eve"),
            shop.nats,
            f"tenant acme: no turn with these labels has ended on these days; {has}",
        ),
        (("--from", "2020-01-01", "--to", "2020-01-31"), shop.nats, "tenant local: no turn has ended on these days"),
    ):
        assert (await run("usage", "--by", "user", *arguments, **environ))[1:] == [last]
    ran = await run_command("usage", "--json", **shop.nats)
    assert (ran.out, ran.err) == ("[]\n", f"tenant local: no turn has ended on these days; {has}\n")
    assert (await run("usage", "--by", "tenant", **shop.nats))[0].startswith("usage of all tenants, ")


@pytest.mark.timeout(60)
async def test_more_than_31_days_of_a_pair_are_refused_in_one_sentence(shop: Shop) -> None:
    for environ in (shop.nats, shop.as_operator):
        ran = await run_command(
            "usage", "--tenant", "acme", "--by", "day,model", "--from", "2026-01-01", "--to", "2026-03-01", **environ
        )
        assert (ran.status, ran.out, "at most 31 at once" in ran.err) == (1, "", True)


@pytest.mark.timeout(60)
async def test_an_operator_lists_the_costliest_turns_of_a_tenant_without_their_texts(shop: Shop) -> None:
    """Also as CSV. Another key is refused, and a filter that the list does not have."""
    path = "/v1/admin/tenants/acme/turns"
    page = await shop.get(f"{path}?user=ada")
    found: list[dict[str, Any]] = page.json()["data"]
    assert [one["user"] for one in found] == ["ada", "ada"]
    assert [one["cost_usd"] for one in found] == sorted((one["cost_usd"] for one in found), reverse=True)
    assert SECRET_WORD not in page.text
    assert len((await shop.get(path)).json()["data"]) == 3
    assert [one["user"] for one in (await shop.get(f"{path}?metadata[team]=red&limit=1")).json()["data"]] <= ["bob"]
    before = shop.day - timedelta(days=1)
    assert (await shop.get(f"{path}?to={before}")).json()["data"] == []
    assert (await shop.get(f"{path}?from=2026-01-01&to=2026-02-01")).status_code == 400
    refused = await shop.get(path, shop.theirs)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "scope_missing")
    assert (await shop.get(f"{path}?project=rivers")).status_code == 400
    heading, *lines = csv.reader(io.StringIO((await shop.get(f"{path}?format=csv")).text))
    assert heading[:5] == ["turn", "model", "user", "session", "turns"]
    assert sorted(line[2] for line in lines) == ["ada", "ada", "bob"]
    listed = await run("turns", "--costliest", "--tenant", "acme", "--user", "ada", **shop.as_operator)
    assert listed[0].split() == ["TURN", "COST", "$", "TOKENS", "MODEL", "USER", "SESSION"]
    assert [line.split()[3:5] for line in listed[1:]] == [[MODEL, "ada"]] * 2
    assert SECRET_WORD not in "".join(listed)
    (printed,) = await run("turns", "--costliest", "--tenant", "acme", "--limit", "1", "--json", **shop.as_operator)
    assert [one["turn"] for one in msgspec.json.decode(printed)] == [(await shop.get(path)).json()["data"][0]["turn"]]
    for which, environ, status, why in (
        ("--costliest", shop.as_tenant, 1, "`admin`"),
        ("--slowest", shop.as_operator, 2, "--costliest"),
    ):
        ran = await run_command("turns", which, "--tenant", "acme", **environ)
        assert (ran.status, ran.out, why in ran.err) == (status, "", True)


@pytest.mark.timeout(60)
async def test_the_usage_of_all_tenants_as_csv_has_all_rows(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several pages."""
    monkeypatch.setattr("tailrace.features.usage.gateway.PAGE_ITEMS_MAX", 1)
    for by, keys in (("tenant", ["acme", "zeta"]), ("model", [MODEL])):
        answer = await shop.get(f"/v1/admin/usage?by={by}&format=csv")
        assert answer.headers["content-type"].startswith("text/csv")
        _, *lines = csv.reader(io.StringIO(answer.text))
        assert [line[0] for line in lines] == keys
    for refused in ("format=xls", "format=csv&limit=1"):
        assert (await shop.get(f"/v1/admin/usage?{refused}")).status_code == 400
