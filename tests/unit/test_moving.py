"""What is done about a log of the other kind, as far as no server is needed for it."""

import io
from pathlib import Path

import pytest

from deploy import moving
from deploy.options import Options
from deploy.screen import Screen


def stores(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("is_cluster", "kept"), [(True, ["cluster", "nats.before"]), (False, ["cluster.before", "nats"])]
)
async def test_where_both_are_the_one_that_is_not_wanted_is_put_aside(
    tmp_path: Path, *, is_cluster: bool, kept: list[str]
) -> None:
    """A move that was stopped after its copy was whole: the copy counts, and what was before it is kept."""
    for name in ("nats", "cluster", kept[-1 if is_cluster else 0]):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    await moving.move(Options(folder=tmp_path, cluster=is_cluster), Screen(io.StringIO(), width=1, coloured=False))
    assert stores(tmp_path) == kept
    aside = next(name for name in kept if name.endswith(".before"))
    assert (tmp_path / aside / "file").read_text() == aside.removesuffix(".before")


async def test_where_there_is_nothing_nothing_is_moved(tmp_path: Path) -> None:
    """The first start, and every start of the same kind."""
    out = io.StringIO()
    for options in (Options(folder=tmp_path), Options(folder=tmp_path, cluster=True)):
        await moving.move(options, Screen(out, width=1, coloured=False))
    (tmp_path / "nats").mkdir()
    await moving.move(Options(folder=tmp_path), Screen(out, width=1, coloured=False))
    assert stores(tmp_path) == ["nats"]
    assert out.getvalue() == ""


def test_what_a_server_has_is_what_it_says_of_each_stream() -> None:
    """As `/jsz?accounts=true&streams=true` tells it; of no stream, nothing."""
    state = {"messages": 3, "last_seq": 9, "first_seq": 2}
    told = {"account_details": [{"name": "$G", "stream_detail": [{"name": "TURNS", "state": state}]}]}
    assert moving.held(told) == {"TURNS": (3, 9)}
    assert moving.held({}) == {}
    assert moving.are_alike([{"TURNS": (3, 9)}] * 3)
    assert not moving.are_alike([{"TURNS": (3, 9)}, {"TURNS": (0, 0)}])
