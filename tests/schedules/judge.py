"""Judges a played schedule: by the six promises, and by properties that only the simulator can see."""

from collections.abc import Iterator

from tailrace.proto.entries import Attempt, Event, StoredEntry
from tailrace.proto.fold import Turn, fold
from tailrace.proto.ids import Seq
from tests.harness.readers import select_valid
from tests.harness.virtual_time import run
from tests.promises import KEPT, PROMISES, Budget, Frame, History, Reader, ReaderConnection, Story, Verdict, worst
from tests.promises import judge as judge_promises
from tests.schedules import model
from tests.schedules import reader as simulated
from tests.schedules.generator import DEFAULTS
from tests.schedules.schedule import BUDGETS, KEY, RESERVED, Schedule
from tests.schedules.server import SimulatedServer


def judge(schedule: Schedule) -> Verdict:
    """Returns the worst verdict; its evidence begins with the seed."""
    stored = schedule.server.stored
    turn, valid = fold(stored), select_valid(stored)
    history = History(
        posted={KEY: True},
        readers=tuple(_build_reader(reader, turn, valid) for reader in schedule.readers),
        log={KEY: tuple(stored)},
        rendered={(KEY, "entries"): tuple(Frame(one.seq, b"") for one in valid)},
        records={KEY: record} if (record := schedule.recorder.record) is not None else {},
        budgets=tuple(budgets(schedule.server, turn)),
        folds={KEY: turn},
    )
    verdict = worst(
        [
            _check_exceptions(schedule),
            _check_termination(schedule),
            judge_promises(history, PROMISES),
            _check_text(schedule, turn),
            _check_attempts(turn, valid),
            _check_acknowledgements(schedule, {one.seq for one in valid}),
            _check_calls(schedule),
            _check_repeats(valid),
            *(_check_refusals(reader, valid) for reader in schedule.readers),
            _check_visibility(schedule),
        ]
    )
    return verdict._replace(evidence=f"seed {schedule.seed}: {verdict.evidence}")


def budgets(server: SimulatedServer, turn: Turn) -> Iterator[Budget]:
    """Yields the budgets and the slot of the turn."""
    cost, is_running = (0, True) if turn.end is None else (turn.end.cost_nano_usd, False)
    for name in BUDGETS:
        left = RESERVED - server.counters.values[name]
        yield Budget(name=name, limit=RESERVED, left=left, recorded=cost, reserved=RESERVED * is_running)
    held = run(server.slots.list_held(KEY.tenant, "tenant", "running"))
    yield Budget(name="running", limit=1, left=1 - len(held), reserved=int(is_running))


def _build_reader(reader: simulated.Reader, turn: Turn, valid: list[StoredEntry]) -> Reader:
    is_whole = len(reader.received) == len(valid) and all(a is b for a, b in zip(reader.received, valid, strict=True))
    read = turn if is_whole else fold(reader.received)
    return Reader(
        name=reader.name,
        key=KEY,
        dialect="entries",
        connections=tuple(reader.connections) or (ReaderConnection(Seq(0), (), "cut"),),
        received=Story(read.text, read.usage, read.outcome),
    )


def _check_exceptions(schedule: Schedule) -> Verdict:
    """The product has logged no unexpected exception, and has raised none that ended a task."""
    return Verdict(False, f"{schedule.world.failures[0]!r} was not expected") if schedule.world.failures else KEPT


def _check_termination(schedule: Schedule) -> Verdict:
    """All processes are done in bounded time."""
    if schedule.is_over:
        return KEPT
    return Verdict(False, f"it is not over after {schedule.world.handled} happenings")


def _check_text(schedule: Schedule, turn: Turn) -> Verdict:
    """A completed answer is the model's whole answer, any other is its beginning."""
    if turn.end is None:
        return Verdict(None, "the turn has not ended")
    script = schedule.script
    if turn.end.outcome == "completed":
        wanted = script.answer(is_corrected=turn.end.schema_valid is not False)
        if [(block.type, block.text) for block in turn.blocks] != [(block.type, block.text) for block in wanted]:
            return Verdict(False, f"the answer is {turn.blocks}, and not {wanted}")
    elif not any(model.text_of(blocks).startswith(turn.text) for blocks in (script.blocks, script.wrong)):
        return Verdict(False, f"{turn.text!r} is not the beginning of the answer")
    return KEPT


def _check_attempts(turn: Turn, valid: list[StoredEntry]) -> Verdict:
    """A turn fails for its attempts only after as many in a row, by default, that have stored no event of an answer."""
    if turn.error is None or turn.error.code != "attempts_exhausted":
        return KEPT
    fruitless = 0
    for stored in valid:
        match stored.entry:
            case Attempt(mode=mode):
                # A restart may write again what it has taken back.
                fruitless = fruitless + 1 if mode != "restart" else DEFAULTS.attempts_max
            case Event(event=raw, is_hidden=False) if b"_delta" in bytes(raw) and fruitless < DEFAULTS.attempts_max:
                fruitless = 0
            case _:
                pass
    is_kept = fruitless >= DEFAULTS.attempts_max
    return KEPT if is_kept else Verdict(False, f"given up after {fruitless} attempts in a row that stored nothing")


def _check_acknowledgements(schedule: Schedule, valid: set[Seq]) -> Verdict:
    """An acknowledged append is valid, and a request is acknowledged after the end."""
    if schedule.too_early:
        return Verdict(False, schedule.too_early[0])
    if schedule.faults.may_fork:
        # Two rivals may both have been acknowledged: the server has broken its promise, and ours is that one counts.
        return KEPT
    appends = [one for generator in schedule.generators for one in generator.acknowledged]
    appends += [one for poster in schedule.posters for one in poster.acknowledged]
    for name, chain in appends:
        if chain.last not in valid:
            return Verdict(False, f"{chain.last} was acknowledged to {name}, and it is not valid")
    return KEPT


def _check_calls(schedule: Schedule) -> Verdict:
    """Each call has an attempt."""
    attempts = sum(isinstance(one.entry, Attempt) for one in schedule.server.stored)
    calls = sum(generator.calls for generator in schedule.generators)
    return KEPT if calls <= attempts else Verdict(False, f"{calls} calls for {attempts} attempts")


def _check_repeats(valid: list[StoredEntry]) -> Verdict:
    """Only a restart may repeat what readers have received: a fresh attempt follows no visible event."""
    is_shown = False
    for stored in valid:
        match stored.entry:
            case Attempt(mode="fresh") if is_shown:
                return Verdict(False, f"the attempt at {stored.seq} begins afresh, and something was shown")
            case Attempt(mode="restart"):
                is_shown = False
            case Event(is_hidden=False):
                is_shown = True
            case _:
                pass
    return KEPT


def _check_refusals(reader: simulated.Reader, valid: list[StoredEntry]) -> Verdict:
    """No reader is refused a turn or a cursor that is valid."""
    if reader.refused:
        return Verdict(False, f"{reader.name}: {reader.refused[0]}")
    for read in reader.broken:
        if all(any(one is other for other in valid) for one in read):
            return Verdict(False, f"{reader.name} was refused after {[one.seq for one in read]}, which is all valid")
    return KEPT


def _check_visibility(schedule: Schedule) -> Verdict:
    """Entries that a client has seen do not disappear from later answers."""
    if schedule.faults.may_fork or schedule.faults.wakings:
        # Entries of a fork may disappear. A former leader that wakes up answers from its past for a moment.
        return KEPT
    return Verdict(False, schedule.poller.shrunk[0]) if schedule.poller.shrunk else KEPT
