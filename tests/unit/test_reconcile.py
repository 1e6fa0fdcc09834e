"""`tailrace reconcile`: Anthropic's report, read from a local server by its documented schema, and the comparison."""

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest

from tailrace.deploy.cli import main, reconcile
from tailrace.deploy.cli.reconcile import compare, render, to_json
from tailrace.deploy.cli.vendor_report import COST_PATH, USAGE_PATH, Report, ReportClient, ReportFailed
from tailrace.features.usage.records import BilledUsage
from tailrace.proto.errors import SettingsInvalid
from tailrace.proto.usage import Usage
from tests.harness.report_server import KEY, Api, serve

FIRST, LAST = date(2026, 11, 1), date(2026, 11, 2)


def usage_bucket(day: date, *results: dict[str, Any]) -> dict[str, Any]:
    """A bucket of the usage report, with the fields of the example in Anthropic's reference."""
    dimensions = {"api_key_id": None, "workspace_id": None, "service_tier": None, "context_window": None}
    tools = {"server_tool_use": {"web_search_requests": 10}}
    return {
        "starting_at": f"{day}T00:00:00Z",
        "ending_at": f"{day}T23:59:59Z",
        "results": [{**dimensions, **tools, **result} for result in results],
    }


def used(model: str, entry: int, output: int, five_minutes: int = 0, hour: int = 0, read: int = 0) -> dict[str, Any]:
    return {
        "model": model,
        "uncached_input_tokens": entry,
        "output_tokens": output,
        "cache_creation": {"ephemeral_5m_input_tokens": five_minutes, "ephemeral_1h_input_tokens": hour},
        "cache_read_input_tokens": read,
    }


def cost_bucket(day: date, *results: dict[str, Any]) -> dict[str, Any]:
    base = {"currency": "USD", "context_window": "0-200k", "service_tier": "standard", "workspace_id": None}
    return {
        "starting_at": f"{day}T00:00:00Z",
        "ending_at": f"{day}T23:59:59Z",
        "results": [base | result for result in results],
    }


def paid(model: str | None, cents: str, kind: str = "tokens", **fields: Any) -> dict[str, Any]:
    description = f"{model or kind} Usage"
    return {"model": model, "amount": cents, "cost_type": kind, "description": description, "token_type": None} | fields


@pytest.fixture
def api() -> Iterator[Api]:
    """Two days on two pages of each report."""
    usage = [
        [usage_bucket(FIRST, used("claude-sonnet-4-5-20250929", 100, 20, 5, 6, 7), used("claude-opus-4-8", 1, 2))],
        [usage_bucket(LAST, used("claude-opus-4-8", 10, 0)), usage_bucket(date(2026, 11, 3))],
    ]
    cost = [
        [
            cost_bucket(
                FIRST, paid("claude-sonnet-4-5-20250929", "123.456"), paid("claude-sonnet-4-5-20250929", "0.044")
            )
        ],
        [
            cost_bucket(
                LAST,
                paid("claude-opus-4-8", "0.005"),
                paid(None, "1", "web_search"),
                paid(None, "500", "code_execution"),
            )
        ],
    ]
    with serve(Api({USAGE_PATH: usage, COST_PATH: cost})) as api:
        yield api


def read(api: Api, *workspaces: str) -> Report:
    return ReportClient({"ANTHROPIC_ADMIN_KEY": KEY}, api.url).read(FIRST, LAST, list(workspaces))


OURS = [
    BilledUsage(FIRST, "claude-sonnet-4-5", 3, Usage(100, 20, 11, 7), 1_235_000_000),
    BilledUsage(FIRST, "claude-opus-4-8", 1, Usage(1, 2), 0),
    BilledUsage(LAST, "claude-opus-4-8", 1, Usage(10), 10_050_000),
]


def test_all_pages_of_both_reports_are_read(api: Api) -> None:
    """By day and model. Cents become dollars, and names of snapshots the models of the table."""
    report = read(api)
    assert report.usage == {
        (FIRST, "claude-sonnet-4-5"): Usage(100, 20, 11, 7),
        (FIRST, "claude-opus-4-8"): Usage(1, 2),
        (LAST, "claude-opus-4-8"): Usage(10),
    }
    assert report.cost_usd == {
        (FIRST, "claude-sonnet-4-5"): Decimal("1.235"),
        (LAST, "claude-opus-4-8"): Decimal("0.00005"),
        (LAST, "web_search"): Decimal("0.01"),
        (LAST, "code_execution"): Decimal(5),
    }
    path, query = api.requests[0]
    assert (path, query["starting_at"], query["ending_at"]) == (
        USAGE_PATH,
        ["2026-11-01T00:00:00Z"],
        ["2026-11-03T00:00:00Z"],
    )
    assert (query["group_by[]"], query["bucket_width"], query["limit"]) == (["model"], ["1d"], ["31"])
    assert [query.get("page") for _, query in api.requests] == [None, ["1"], None, ["1"]]


def test_one_workspace_of_the_report_can_be_compared(api: Api) -> None:
    """The usage report filters by itself. The cost report names the workspace of each amount."""
    api.pages[COST_PATH][0][0]["results"][0]["workspace_id"] = "wrkspc_1"
    assert read(api, "wrkspc_1").cost_usd == {(FIRST, "claude-sonnet-4-5"): Decimal("1.23456")}
    assert api.requests[0][1]["workspace_ids[]"] == ["wrkspc_1"]


def test_equal_usage_and_cost_are_equal(api: Api) -> None:
    """With searches in the cost of the day. The container hours are named, and not compared."""
    found = compare(OURS, read(api), Decimal("0.1"))
    assert found.is_equal
    assert [(row.day, row.model) for row in found.rows] == [
        (FIRST, "claude-opus-4-8"),
        (FIRST, "claude-sonnet-4-5"),
        (FIRST, "all"),
        (LAST, "claude-opus-4-8"),
        (LAST, "all"),
    ]
    assert found.other_usd == {"code_execution": Decimal(5)}
    text = render(found)
    assert "All are equal within the tolerance." in text
    assert "code_execution: $5.00" in text
    shown = to_json(found, None)
    assert shown["is_equal"] is True
    assert shown["other_cost_usd"] == {"code_execution": 5.0}


@pytest.mark.parametrize(
    ("change", "rows"),
    [
        ({"usage": Usage(101, 20, 11, 7)}, {(FIRST, "claude-sonnet-4-5")}),
        ({"usage": Usage(20, 100, 11, 7)}, {(FIRST, "claude-sonnet-4-5")}),
        ({"cost_nano_usd": 1_237_000_000}, {(FIRST, "all")}),
        ({"model": "claude-opus-9"}, {(FIRST, "claude-sonnet-4-5"), (FIRST, "claude-opus-9")}),
        ({"day": LAST}, {(day, model) for day in (FIRST, LAST) for model in ("claude-sonnet-4-5", "all")}),
    ],
)
def test_a_difference_above_the_tolerance_is_named(
    api: Api, change: dict[str, Any], rows: set[tuple[date, str]]
) -> None:
    """Of each count by itself: the sums of a model may be equal by chance."""
    fields = {name: getattr(OURS[0], name) for name in BilledUsage.__struct_fields__} | change
    found = compare([BilledUsage(**fields), *OURS[1:]], read(api), Decimal("0.1"))
    assert {(row.day, row.model) for row in found.rows if not row.is_equal} == rows
    assert render(found).count("differs") == len(rows)
    assert not compare([BilledUsage(**fields), *OURS[1:]], read(api), Decimal(0)).is_equal


def test_a_difference_within_the_tolerance_is_equal(api: Api) -> None:
    """One percent of the larger amount."""
    near = [BilledUsage(FIRST, "claude-sonnet-4-5", 3, Usage(101, 20, 11, 7), 1_240_000_000), *OURS[1:]]
    assert compare(near, read(api), Decimal(1)).is_equal
    assert not compare(near, read(api), Decimal("0.9")).is_equal


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (403, b"{}", "Admin key"),
        (404, b'{"error":{"message":"Not found"}}', "(Not found)"),
        (429, b"", "in a minute"),
        (500, b"<html>", "try again later"),
        (302, b"", "could not be read"),
        (200, b"<html>", "format"),
        (200, b'{"data":[{"starting_at":"yesterday"}]}', "format"),
        (200, b'{"data":[],"has_more":true,"next_page":"1"}', "repeats a page"),
    ],
)
def test_a_report_that_cannot_be_read_is_one_sentence_without_the_key(
    api: Api, status: int, body: bytes, message: str
) -> None:
    """It says what the API answered, and what to do."""
    api.failure = status, body
    with pytest.raises(ReportFailed, match=message.replace("(", r"\(").replace(")", r"\)")) as raised:
        read(api)
    assert KEY not in str(raised.value)


def test_amounts_in_another_currency_are_refused(api: Api) -> None:
    """Also amounts that are no numbers."""
    for change in ({"currency": "EUR"}, {"amount": "NaN"}, {"amount": "much"}):
        first = api.pages[COST_PATH][0][0]["results"][0]
        api.pages[COST_PATH][0][0]["results"][0] = first | change
        with pytest.raises(ReportFailed, match="not in US dollars"):
            read(api)
        api.pages[COST_PATH][0][0]["results"][0] = first


def test_the_key_is_needed_and_sent_only_over_https(api: Api) -> None:
    """Or to this machine. A key that is no Admin key is refused by the API."""
    for environ in ({}, {"ANTHROPIC_ADMIN_KEY": ""}, {"ANTHROPIC_ADMIN_KEY": "with\nline"}):
        with pytest.raises(SettingsInvalid, match="ANTHROPIC_ADMIN_KEY"):
            ReportClient(environ)
    for url in ("http://api.anthropic.com", "ftp://localhost", "", "https://", "http://[", "localhost"):
        with pytest.raises(SettingsInvalid, match="--api"):
            ReportClient({"ANTHROPIC_ADMIN_KEY": KEY}, url)
    with pytest.raises(ReportFailed, match="invalid x-api-key"):
        ReportClient({"ANTHROPIC_ADMIN_KEY": "sk-ant-api03-x"}, api.url).read(FIRST, LAST, [])
    with pytest.raises(ReportFailed, match="cannot be reached"):
        ReportClient({"ANTHROPIC_ADMIN_KEY": KEY}, "http://127.0.0.1:9").read(FIRST, LAST, [])


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> list[BilledUsage]:
    """The usage that the command finds in the database."""
    found = list(OURS)

    async def fetch(*_: object) -> tuple[list[BilledUsage], datetime]:
        return found, datetime(2026, 11, 1, 8, tzinfo=UTC)

    monkeypatch.setattr(reconcile, "fetch", fetch)
    monkeypatch.setenv("TAILRACE_NATS_URL", "nats://127.0.0.1:1")
    monkeypatch.setenv("ANTHROPIC_ADMIN_KEY", KEY)
    return found


def test_the_command_fails_above_the_tolerance(
    api: Api, ours: list[BilledUsage], capsys: pytest.CaptureFixture[str]
) -> None:
    """With the table, or JSON. The key is in no output."""
    days = ("--from", str(FIRST), "--to", str(LAST), "--api", api.url)
    assert main.main(["reconcile", *days]) == 0
    out = capsys.readouterr().out
    assert "All are equal" in out
    assert "up to 2026-11-01 08:00" in out
    ours.pop()
    assert main.main(["reconcile", *days, "--json"]) == 1
    printed = capsys.readouterr()
    shown = json.loads(printed.out)
    assert [(row["day"], row["model"]) for row in shown["rows"] if not row["is_equal"]] == [
        (str(LAST), "claude-opus-4-8"),
        (str(LAST), "all"),
    ]
    assert KEY not in printed.out + printed.err
    assert main.main(["reconcile", *days, "--tolerance", "100"]) == 0


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--from", "2026-11-02", "--to", "2026-11-01"), "exchange them"),
        (("--from", "2020-01-01", "--to", "2026-11-01"), "366 days"),
        (("--from", "yesterday"), "is not a day"),
        (("--tolerance", "-1"), "percentage"),
        (("--tolerance", "NaN"), "percentage"),
        (("--api", "http://example.com"), "https://"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With status 2, before a request."""
    try:
        status = main.main(["reconcile", *arguments])
    except SystemExit as stopped:
        status = int(stopped.code or 0)
    assert (status, message in capsys.readouterr().err) == (2, True)
