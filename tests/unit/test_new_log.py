"""Whether a missing log may be created."""

from itertools import product
from pathlib import Path

from tailrace.deploy.nats.new_log import Evidence, ask_database, ask_stores, find_objection, refusal

SAID = {True: "has recorded turns", False: "has recorded nothing", None: "does not answer"}
# The answers of persistence and of the database of the settings, and whether the log may be created.
CASES = {
    (True, True): False,
    (True, False): False,
    (True, None): False,
    (False, True): False,
    (False, False): True,
    (False, None): True,
    (None, True): False,
    (None, False): True,
    (None, None): False,
}


def test_a_log_is_created_only_if_a_source_says_that_there_was_none_and_no_source_that_there_was_one() -> None:
    """The message names each source that is a reason."""
    assert set(CASES) == set(product(SAID, repeat=2))
    for answers, may_create in CASES.items():
        sources = [Evidence(said, f"{name} {SAID[said]}") for name, said in zip("AB", answers, strict=True)]
        objection = find_objection(sources)
        assert (objection == "") == may_create, answers
        reasons = [one.detail for one in sources if one.has_recorded or True not in answers]
        assert may_create or all(reason in objection for reason in reasons), objection


def test_the_refusal_says_what_is_wrong_and_what_to_do() -> None:
    message = refusal("the database x has recorded turns")
    wrong = "NATS has no log (the stream TURNS), and the database x has recorded turns"
    for part in (
        wrong,
        "another account, JetStream domain or volume",
        "Nothing was created",
        "copy its store",
        "--new",
    ):
        assert part in message


async def test_files_of_a_log_that_nats_does_not_show_are_a_reason(tmp_path: Path) -> None:
    """As after a start with a store that nats-server could not read. A store without them may not be the only one."""
    (tmp_path / "one/jetstream/TAILRACE/streams/BODIES").mkdir(parents=True)
    stores = [tmp_path / "one", tmp_path / "two"]
    assert (await ask_stores(stores)).has_recorded is None
    (found := tmp_path / "two/jetstream/TAILRACE/streams/TURNS").mkdir(parents=True)
    assert await ask_stores(stores) == Evidence(True, f"{found} has files of one")


async def test_a_database_that_cannot_be_asked_says_nothing(tmp_path: Path) -> None:
    """A file may be absent because it is on another machine, or because its volume is not mounted."""
    absent, damaged = tmp_path / "away/tailrace.db", tmp_path / "damaged.db"
    damaged.write_bytes(b"no database" * 1000)
    assert await ask_database(None) == Evidence(None, "TAILRACE_DATABASE is not set")
    assert await ask_database(str(absent)) == Evidence(None, f"the database {absent} does not exist here")
    assert (await ask_database(str(absent), if_absent=False)).has_recorded is False
    assert not absent.parent.exists()
    for where in (str(damaged), "postgresql://tailrace:secret@127.0.0.1:9/tailrace"):
        said = await ask_database(where)
        assert said.has_recorded is None
        assert "cannot be asked: " in said.detail
        assert "secret" not in said.detail
