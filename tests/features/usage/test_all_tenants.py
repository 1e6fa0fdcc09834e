"""The usage of all tenants, over HTTP and on the command line, and as CSV."""

import csv
import io
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tailrace.deploy.cli import usage
from tailrace.deploy.cli.keys import create
from tailrace.deploy.local.nats_server import NatsServer
from tailrace.features.usage.csv_table import COUNTS
from tailrace.features.usage.records import UsagePage, UsageRecord
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import TurnLog
from tailrace.proto.records import Totals
from tailrace.proto.usage import Usage
from tests.harness.forks import run_command
from tests.harness.persistence_in_loop import Persistence
from tests.harness.turn_writer import write_turn
from tests.harness.until import until_equal
from tests.integration.conftest import NewGateway

ACME, ZETA = Tenant("acme"), Tenant("zeta")
# A spreadsheet would compute it.
FORMULA = "=1+1"


@pytest.mark.timeout(60)
async def test_the_usage_of_all_tenants_needs_a_key_of_the_operator(
    own_server: NatsServer, own_log: TurnLog, new_gateway: NewGateway, tmp_path: Path
) -> None:
    """A key with every right in its own tenant is refused. Each form has the same sum."""
    async with Persistence(own_server.url, tmp_path / "tailrace.db"):
        await write_turn(own_log, "a", tenant=ACME, user="ann", metadata={"team": "red"})
        await write_turn(own_log, "b", tenant=ACME)
        await write_turn(own_log, "c", tenant=ZETA, user=FORMULA)
        admin, _ = await create(own_server.url, Tenant("operators"), "me", ["admin"])
        theirs, _ = await create(own_server.url, ACME, "theirs", ["read", "write", "manage", "operate"])
        gateway = await new_gateway(own_server.url)

        async def get(path: str, key: str = admin.secret) -> dict[str, Any]:
            answer = await gateway.client.get(path, headers={"authorization": f"Bearer {key}"})
            found: dict[str, Any] = answer.json()
            return found | {"status": answer.status_code}

        async def turns() -> dict[str, int]:
            return {one["key"]: one["turns"] for one in (await get("/v1/admin/usage"))["data"]}

        await until_equal(turns, {"acme": 2, "zeta": 1})
        for path in ("/v1/admin/usage", "/v1/admin/tenants/zeta/usage"):
            refused = await get(path, theirs.secret)
            assert (refused["status"], refused["error"]["code"]) == (403, "scope_missing")
        first = await get("/v1/admin/usage?limit=1")
        second = await get(f"/v1/admin/usage?limit=1&after={first['next']}")
        assert [one["key"] for one in (*first["data"], *second["data"])] == ["acme", "zeta"]
        assert second["next"] is None
        assert (await get("/v1/admin/usage?to=2020-01-31"))["data"] == []

        own = {"TAILRACE_NATS_URL": own_server.url}
        http = {"TAILRACE_URL": str(gateway.client.base_url), "TAILRACE_KEY": admin.secret}
        for environ in (own, http):
            ran = await run_command("usage", "--by", "tenant", **environ)
            assert [line.split()[:2] for line in ran.out.splitlines()][2:] == [
                *(["acme", "2"], ["zeta", "1"], ["all", "3"])
            ]
            ran = await run_command("usage", "--all-tenants", "--by", "metadata.team", **environ)
            assert [line.split()[:3] for line in ran.out.splitlines()][2:-1] == [
                *(["acme", "-", "1"], ["acme", "red", "1"], ["zeta", "-", "1"])
            ]
            assert ran.out.splitlines()[-1].split()[:2] == ["all", "3"]
            ran = await run_command("usage", "--all-tenants", "--by", "user", "--csv", **environ)
            heading, *rows = csv.reader(io.StringIO(ran.out))
            assert heading == ["tenant", "user", *COUNTS, "cost_usd", "last_used"]
            assert [row[:3] for row in rows] == [
                *(["acme", "-", "1"], ["acme", "ann", "1"], ["zeta", f"'{FORMULA}", "1"])
            ]
            total = sum(one["cost_usd"] for one in (await get("/v1/admin/usage"))["data"])
            assert sum(float(row[heading.index("cost_usd")]) for row in rows) == pytest.approx(total, abs=1e-12)
            ran = await run_command("usage", "--all-tenants", "--by", "user", "--json", **environ)
            assert [(one["tenant"], one["key"]) for one in msgspec.json.decode(ran.out)] == [
                *(("acme", None), ("acme", "ann"), ("zeta", FORMULA))
            ]
        refused_command = await run_command(*("usage", "--by", "tenant"), **http | {"TAILRACE_KEY": theirs.secret})
        assert (refused_command.status, "admin" in refused_command.err) == (1, True)


def totals(turns: int) -> dict[str, Any]:
    return {
        "turns": turns,
        "usage": Usage(turns),
        "cost_usd": turns / 4,
        "message_count": turns,
        "total_tokens": turns,
        "total_cost": turns / 4,
    }


def record(key: str | None, turns: int) -> UsageRecord:
    return UsageRecord(key=key, last_used=datetime(2026, 1, 1, tzinfo=UTC), **totals(turns))


async def test_a_bill_is_read_again_if_a_user_is_erased_between_two_pages(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Otherwise Ann's usage, which has moved to the row without a name, is in none of its pages."""
    before = {None: UsagePage([record(None, 1)], "next"), "next": UsagePage([record("ann", 2)], None)}
    after = {None: UsagePage([record(None, 3)], "next"), "next": UsagePage([], None)}
    reads = [before, after, after, after]

    async def read_page(_: Tenant | None, __: Sequence[str], cursor: str | None) -> UsagePage:
        return msgspec.structs.replace(reads.pop(0)[cursor], total=Totals(**totals(3)))

    assert [(one.key, one.turns) for one in await usage.read(read_page, ACME, ["user"])] == [(None, 3)]
    assert reads == []

    async def grow(_: Tenant | None, __: Sequence[str], cursor: str | None) -> UsagePage:
        """A turn ends between any two pages."""
        return msgspec.structs.replace(before[cursor], total=Totals(**totals(9)))

    assert len(await usage.read(grow, ACME, ["user"])) == 2
    assert "turns ended" in capsys.readouterr().err
