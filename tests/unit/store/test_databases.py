"""The choice of a database by the scheme of its URL, and a driver that only a feature names."""

from pathlib import Path
from typing import Any

import pytest

from tailrace.persistence.database import Database, Databases, Driver
from tailrace.persistence.feature import Feature, Parts, databases_of
from tailrace.persistence.serve import preflight
from tailrace.persistence.settings import Settings
from tailrace.persistence.sqlite import SQLite
from tailrace.persistence.store import Store
from tailrace.proto.errors import SettingsInvalid
from tailrace.proto.ids import Seq
from tailrace.proto.runtime.settings import NoSettings
from tests.harness.stored_turns import key
from tests.harness.turn_builder import completed_turn


class Toy(SQLite):
    """A database that keeps a file below the path of its URL, and has a text of its own for one part."""

    own_queries = "-- name: running_turns\nSELECT tenant, 'toy' AS turn FROM turns\n"


async def open_toy(url: str, busy_timeout_s: float) -> Database:
    return await Toy.open(Path(url.removeprefix("toy://")) / "toy.db", busy_timeout_s=busy_timeout_s)


def hide(url: str) -> str:
    return f"toy://…{len(url)}"


TOY = Feature(NoSettings, lambda _, __: Parts(), driver=Driver(["toy"], "toy://FOLDER", open_toy, hide))


async def test_a_feature_names_the_driver_of_a_scheme(tmp_path: Path) -> None:
    """A process with the feature records in it; without the feature it refuses the URL."""
    url, toys = f"toy://{tmp_path}", databases_of([TOY])
    await preflight(Settings(database=url), features=[TOY])
    store = Store(await toys.open(url, busy_timeout_s=1))
    try:
        await store.migrate()
        await store.record([store.build_row(key("turn-1"), completed_turn("Light").turn)], Seq(1))
        assert [one.turn for one in await store.running_turns()] == ["toy"]
    finally:
        await store.close()
    assert (tmp_path / "toy.db").exists()
    assert (toys.display(url), toys.global_name(url)) == (hide(url), hide(url))
    with pytest.raises(SettingsInvalid, match=r"^TAILRACE_DATABASE: toy:/+ is not supported; expected the path"):
        await preflight(Settings(database=url))


def test_an_unknown_scheme_is_refused_with_the_known_ones() -> None:
    """Also with a mistyped known one, which would be the name of a file."""
    other: Any = None
    databases = Databases(
        [Driver(["other", "more"], "other://HOST", other, other), Driver(["toy"], "toy://FOLDER", open_toy, hide)]
    )
    for url, begins in (("none://a:b@c", "none://"), ("toy:/a", "toy:/"), ('"otherwise ://a', '"otherwise :')):
        with pytest.raises(SettingsInvalid) as refused:
            databases.is_url(url)
        assert str(refused.value).startswith(
            f"TAILRACE_DATABASE: {begins} is not supported; expected other://HOST or toy://FOLDER or the path of a file"
        )
    assert [databases.is_url(where) for where in ("toy://a", "more://a", "a:b.db", Path("toy://a"))] == [
        True,
        True,
        False,
        False,
    ]


def test_two_drivers_of_one_scheme_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^two parts provide the URL scheme toy"):
        databases_of([TOY, TOY])
