"""`tailrace explain` prints what error messages refer to: an installed package has no pages."""

import msgspec
import pytest

from tailrace.deploy.cli.main import main
from tailrace.deploy.local.check_environment import SERVICES
from tailrace.proto.errors import CODES
from tailrace.proto.runtime import settings

HOSTS = "TAILRACE_HOSTS  (str, default none; gateway)\n    host names that requests may name"


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        (
            "log_unavailable",
            ["status 503, api_error; the same request may succeed later", CODES["log_unavailable"].advice],
        ),
        ("cursor_invalid", ["status 400, invalid_request_error; the same request fails again"]),
        ("TAILRACE_HOSTS", [HOSTS]),
        ("hosts", [HOSTS]),
        ("ANTHROPIC_API_KEY", ["ANTHROPIC_API_KEY  (str, default none; generators"]),
        ("errors", [text for code, row in CODES.items() for text in (code, row.meaning, row.advice)]),
        ("settings", [text for _, kind in SERVICES for row in settings.table(kind) for text in row]),
    ],
)
def test_each_error_code_and_setting_is_explained(
    name: str, texts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", name]) == 0
    printed = capsys.readouterr().out
    assert [text for text in texts if text not in printed] == []


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("SQLITE_FULL", "make space"),
        ("SQLITE_LOCKED", "end that program"),
        ("55P03", "look for long transactions"),
        ("53100", "repair it on the server"),
        ("SQLITE_CORRUPT", "restore older turns from a backup, or from the damaged file."),
    ],
)
def test_an_error_of_the_database_is_explained(name: str, advice: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`/readyz` and the log of persistence show the code. A SQLSTATE is explained by its class."""
    assert main(["explain", name]) == 0
    assert advice in capsys.readouterr().out


def test_a_list_as_json_has_each_row_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "errors", "--json"]) == 0
    assert [row["name"] for row in msgspec.json.decode(capsys.readouterr().out)] == list(CODES)


@pytest.mark.parametrize("name", ["TAILRACE_HEDGE_AFTER_S", "hedge_after_s"])
def test_a_removed_setting_has_its_reason(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", name]) == 2
    assert "TAILRACE_HEDGE_AFTER_S has no effect: hedging was removed" in capsys.readouterr().err


def test_a_similar_name_is_suggested(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "TAILRACE_HOTS"]) == 2
    assert "TAILRACE_HOTS is not an error code or a setting (did you mean TAILRACE_HOSTS?)" in capsys.readouterr().err
