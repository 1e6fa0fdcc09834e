"""Decisions of the log migration that need no server."""

import io
from pathlib import Path

import pytest

from tailrace.deploy.local import migrate_log
from tailrace.deploy.local.console import Console
from tailrace.deploy.local.errors import UpRefused
from tailrace.deploy.local.migrate_log import RaftGroup, ServerState, StoredStream
from tailrace.deploy.local.nats_server import NatsServer
from tailrace.deploy.local.options import Options


def stores(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def make_store(store: Path) -> None:
    (store / "jetstream/TAILRACE/streams/TURNS").mkdir(parents=True)
    (store / "file").write_text(store.name)


@pytest.mark.parametrize(
    ("is_cluster", "kept"), [(True, ["cluster", "nats.before"]), (False, ["cluster.before", "nats"])]
)
async def test_of_two_logs_the_unwanted_one_is_renamed(tmp_path: Path, *, is_cluster: bool, kept: list[str]) -> None:
    """After an interrupted migration the complete copy is used, and the previous log is kept."""
    for name in ("nats", "cluster", kept[-1 if is_cluster else 0]):
        make_store(tmp_path / name)
    await migrate_log.migrate(
        Options(data_dir=tmp_path, cluster=is_cluster), Console(io.StringIO(), width=1, coloured=False)
    )
    assert stores(tmp_path) == kept
    aside = next(name for name in kept if name.endswith(".before"))
    assert (tmp_path / aside / "file").read_text() == aside.removesuffix(".before")


async def test_without_a_log_of_the_other_kind_nothing_is_migrated(tmp_path: Path) -> None:
    """The first start, and every start of the same kind."""
    out = io.StringIO()
    for options in (Options(data_dir=tmp_path), Options(data_dir=tmp_path, cluster=True)):
        await migrate_log.migrate(options, Console(out, width=1, coloured=False))
    make_store(tmp_path / "nats")
    await migrate_log.migrate(Options(data_dir=tmp_path), Console(out, width=1, coloured=False))
    assert stores(tmp_path) == ["nats"]
    assert out.getvalue() == ""


@pytest.mark.parametrize("is_cluster", [True, False])
async def test_a_store_without_streams_is_neither_a_log_nor_its_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_cluster: bool
) -> None:
    """A start that was refused leaves it. It would be used in place of the log, which was renamed."""
    old, new = ("nats", "cluster") if is_cluster else ("cluster", "nats")
    (tmp_path / new / "jetstream").mkdir(parents=True)
    console = Console(io.StringIO(), width=1, coloured=False)
    await migrate_log.migrate(Options(data_dir=tmp_path, cluster=not is_cluster), console)
    assert stores(tmp_path) == [new]

    async def copy(_: object, options: Options, stage: Path, __: object) -> None:
        make_store(migrate_log.store_of(options, stage))

    monkeypatch.setattr(migrate_log, "copy", copy)
    make_store(tmp_path / old)
    await migrate_log.migrate(Options(data_dir=tmp_path, cluster=is_cluster), console)
    assert stores(tmp_path) == sorted([new, f"{old}.before"])
    assert (tmp_path / new / "file").exists()


DONE = RaftGroup("x", 4, 4, 4)
WHOLE = ServerState({"TURNS": StoredStream(3, 2, 9, 1)}, {"_meta_": DONE, "S-1": DONE, "C-1": DONE})


@pytest.mark.parametrize(
    ("one", "is_settled"),
    [
        (WHOLE, True),
        # A store that was cut down to its last snapshot: on all of them it is alike.
        (WHOLE._replace(groups={"_meta_": DONE, "S-1": RaftGroup("x", 4, 4, 1), "C-1": DONE}), False),
        (WHOLE._replace(groups={"_meta_": DONE, "S-1": RaftGroup("x", 4, 1, 1), "C-1": DONE}), False),
        # A snapshot needs what each consumer's leader knows.
        (WHOLE._replace(groups={"_meta_": DONE, "S-1": DONE, "C-1": RaftGroup("", 4, 4, 4)}), False),
        (WHOLE._replace(groups={"_meta_": DONE, "S-1": DONE}), False),
        (WHOLE._replace(groups={}), False),
    ],
)
def test_servers_are_settled_when_all_raft_groups_are_applied(one: ServerState, *, is_settled: bool) -> None:
    """Equal streams are not enough: servers that have just started may all show the same old state."""
    assert migrate_log.are_settled([one, one, one]) == is_settled


def test_servers_with_different_states_are_not_settled_and_a_single_one_is() -> None:
    """The last commit may have reached only two of them."""
    assert not migrate_log.are_settled([WHOLE, WHOLE, ServerState({"TURNS": StoredStream(2, 2, 8, 1)}, WHOLE.groups)])
    behind = RaftGroup("x", 3, 3, 3)
    assert not migrate_log.are_settled(
        [WHOLE, WHOLE, WHOLE._replace(groups={"_meta_": DONE, "S-1": behind, "C-1": DONE})]
    )
    # A single server has no Raft groups, and accepts clients after it has read its store.
    assert migrate_log.are_settled([WHOLE._replace(groups=None)])


# One message that the others have deleted.
DIVERGED = WHOLE._replace(streams={"TURNS": StoredStream(4, 2, 9, 1)})


@pytest.mark.parametrize(
    ("servers", "found"),
    [
        ([WHOLE, WHOLE, DIVERGED], 2),
        ([DIVERGED, WHOLE, WHOLE], 0),
        ([WHOLE, WHOLE, WHOLE], None),
        ([WHOLE, DIVERGED, DIVERGED._replace(streams={})], None),
        (
            [WHOLE, WHOLE, DIVERGED._replace(groups=WHOLE.groups and {**WHOLE.groups, "S-1": DONE._replace(last=5)})],
            None,
        ),
        ([WHOLE._replace(groups=None)], None),
        ([], None),
    ],
)
def test_the_server_is_found_that_differs_from_two_equal_ones(servers: list[ServerState], found: int | None) -> None:
    """A server that has not yet applied its Raft log may still become equal."""
    assert migrate_log.find_diverged(servers) == found


async def test_a_log_of_which_one_server_has_diverged_is_not_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nats-server 2.15.1 can lose a deletion on a server that is killed. The message names what to delete."""

    async def start(*_: object) -> tuple[None, list[NatsServer]]:
        return None, []

    monkeypatch.setattr(migrate_log, "_start", start)
    monkeypatch.setattr(migrate_log, "_read_state", lambda spec: DIVERGED if spec.name == "nats-2" else WHOLE)
    monkeypatch.setattr(migrate_log, "UNCHANGED_S_MAX", 0.2)
    make_store(tmp_path / "cluster")
    with pytest.raises(
        UpRefused, match=r"cluster/nats-2 does not store .*Delete .*cluster/nats-2/nats/jetstream, start"
    ):
        await migrate_log.migrate(Options(data_dir=tmp_path), Console(io.StringIO(), width=1, coloured=False))
    assert stores(tmp_path) == ["cluster"]
