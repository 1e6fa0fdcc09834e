"""When the leases of a generator are released by another one, and when they are left to expire.

The product's own watchers run on virtual time over a bus in memory. tests/integration/test_dead_generators.py has real
processes.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from tailrace.generators.peer_watch import ANSWER_S_MAX, PeerWatch
from tailrace.generators.peers import CHANGES_KEPT, Holdings, Peer, Peers
from tailrace.proto.chain import START
from tailrace.proto.entries import StoredEntry
from tailrace.proto.errors import LogDenied, LogUnavailable, PeerAbsent
from tailrace.proto.ids import Seq, TurnKey
from tailrace.proto.nats.peers import Held, Holding, Notice, Server
from tailrace.proto.ownership import ScopedKey
from tests.harness.turn_builder import NOON, attempt
from tests.harness.virtual_time import run

pytestmark = pytest.mark.rule("R151")
WATCHING_S, GONE_S_MAX, LONG_S = 3.0, 0.5, 30.0
SERVERS = {"one": Server("one", "N1"), "two": Server("two", "N2")}


class Bus:
    """The generators of a system, and what NATS knows of them."""

    def __init__(self) -> None:
        self.links: dict[str, Link] = {}
        self.servers = set(SERVERS.values())
        """The nats-servers that run and are reached from everywhere."""
        self.newest: dict[str, str] = {}
        """The generator of the newest attempt of each turn that has one."""
        self.released: list[tuple[float, str, str]] = []
        """Of each release: the time, the generator that released, and the turn."""
        self.questions = 0

    @property
    def released_turns(self) -> list[str]:
        return sorted(turn for _, _, turn in self.released)


class Link:
    """A PeerLink of one generator."""

    def __init__(self, bus: Bus, name: str, server: str = "one") -> None:
        self.name, self.bus = name, bus
        self.server: Server | None = SERVERS[server]
        self.is_connected = True
        self.is_frozen = self.is_denied = False
        self.settled_since = -LONG_S
        self.answer: Callable[[int], Holding]
        self.receive: Callable[[Notice], None]
        bus.links[name] = self

    async def serve(self, answer: Callable[[int], Holding], receive: Callable[[Notice], None]) -> None:
        self.answer, self.receive = answer, receive

    def on_reconnected(self, _: Callable[[], None]) -> None:
        """The notices that are sent again and again are enough here."""

    async def notify(self, notice: Notice) -> None:
        if self.is_denied:
            raise LogDenied("denied")
        self._require()
        for link in list(self.bus.links.values()):
            if link.is_connected:
                asyncio.get_running_loop().call_later(0.001, link.receive, notice)

    async def ask(self, name: str, known: int, *, timeout_s: float) -> Holding:
        self._require()
        self.bus.questions += 1
        await asyncio.sleep(0.001)
        link = self.bus.links.get(name)
        if link is None or not link.is_connected:
            raise PeerAbsent(name)
        if link.is_frozen:
            await asyncio.sleep(timeout_s)
            raise LogUnavailable("no answer")
        return link.answer(known)

    def is_settled(self, for_s: float) -> bool:
        return self.is_connected and asyncio.get_running_loop().time() - self.settled_since >= for_s

    async def is_reached(self, server: Server, *, timeout_s: float) -> bool:  # noqa: ARG002
        return server in self.bus.servers

    async def release(self, held: Held) -> None:
        self.bus.released.append((asyncio.get_running_loop().time(), self.name, held.turn))

    def _require(self) -> None:
        if not self.is_connected:
            raise LogUnavailable("disconnected")


class Log:
    """The reads of a TurnLog of turns whose only attempt is entry 2."""

    def __init__(self, bus: Bus) -> None:
        self._newest = bus.newest
        self.is_up = True

    async def last_seq(self, key: TurnKey, kind: str) -> Seq:
        if not self.is_up:
            raise LogUnavailable("no leader")
        await asyncio.sleep(0.001)
        return Seq(2 if kind == "attempt" and key.turn in self._newest else 0)

    async def read_entries(self, key: ScopedKey, after: Seq, limit: int) -> list[StoredEntry]:
        assert (after, limit) == (1, 1)
        entry = msgspec.structs.replace(attempt(START), generator=self._newest[key.turn])
        return [StoredEntry(Seq(2), NOON, entry)]


class Generator:
    """A watcher, and what its process holds."""

    def __init__(self, bus: Bus, name: str, server: str = "one") -> None:
        self.bus, self.name = bus, name
        self.turns = list[str]()
        self.link, self.log = Link(bus, name, server), Log(bus)
        link, log, worker = self.link, self.log, SimpleNamespace(deliveries=self.deliveries)
        self.watch = PeerWatch(link, name, log, worker)  # type: ignore[arg-type]
        self.task = asyncio.ensure_future(self.watch.run())

    def hold(self, *turns: str, attempts: bool = True) -> None:
        self.turns = list(turns)
        if attempts:
            self.bus.newest |= dict.fromkeys(turns, self.name)

    def deliveries(self) -> list[Any]:
        return [held(turn) for turn in self.turns]

    def kill(self) -> None:
        self.task.cancel()
        del self.bus.links[self.name]


def held(turn: str) -> Any:
    return SimpleNamespace(key=SimpleNamespace(tenant="alice", turn=turn), ack_subject=f"ack.{turn}")


Scenario = Callable[[Bus, Mapping[str, Generator]], Coroutine[Any, Any, None]]


def play(scenario: Scenario, *, names: str = "abc", servers: Mapping[str, str] | None = None) -> Bus:
    """Lets generators watch one another, and then runs the scenario; returns the bus 30 s later."""
    bus = Bus()

    async def main() -> None:
        generators = {name: Generator(bus, name, (servers or {}).get(name, "one")) for name in names}
        generators["b"].hold("b1", "b2")
        await asyncio.sleep(WATCHING_S)
        await scenario(bus, generators)
        await asyncio.sleep(LONG_S)
        for generator in generators.values():
            # It has not ended by an error.
            assert generator.task.cancel() or generator.task.cancelled()

    run(main())
    return bus


@pytest.mark.parametrize("servers", [{}, {"b": "two"}], ids=["same nats-server", "another nats-server"])
def test_the_leases_of_a_killed_generator_are_released_once_by_one_other(servers: Mapping[str, str]) -> None:
    async def kill(_: Bus, generators: Mapping[str, Generator]) -> None:
        generators["b"].kill()

    bus = play(kill, servers=servers)
    assert bus.released_turns == ["b1", "b2"]
    assert len({name for _, name, _ in bus.released}) == 1
    assert max(at for at, _, _ in bus.released) < WATCHING_S + GONE_S_MAX


def test_a_turn_that_another_generator_has_begun_is_not_released() -> None:
    async def kill(bus: Bus, generators: Mapping[str, Generator]) -> None:
        bus.newest["b1"] = "a"
        generators["b"].kill()

    assert play(kill).released_turns == ["b2"]


def test_a_turn_that_waited_in_the_dead_generator_is_released() -> None:
    async def kill(_: Bus, generators: Mapping[str, Generator]) -> None:
        generators["b"].hold("waiting", attempts=False)
        await asyncio.sleep(0.2)
        generators["b"].kill()

    assert play(kill).released_turns == ["waiting"]


@pytest.mark.parametrize("silent_s", [0.1, 0.7])
def test_questions_that_the_dead_generator_has_still_received_cost_no_time(silent_s: float) -> None:
    """It was busy before it was killed, and has not answered them."""

    async def kill(_: Bus, generators: Mapping[str, Generator]) -> None:
        generators["b"].link.is_frozen = True
        await asyncio.sleep(silent_s)
        generators["b"].kill()

    bus = play(kill)
    assert bus.released_turns == ["b1", "b2"]
    assert max(at for at, _, _ in bus.released) < WATCHING_S + silent_s + GONE_S_MAX


def test_a_generator_that_was_disconnected_and_silent_is_watched_again() -> None:
    async def disconnect_and_kill(bus: Bus, generators: Mapping[str, Generator]) -> None:
        await flap(bus, generators)
        generators["b"].kill()

    assert play(disconnect_and_kill).released_turns == ["b1", "b2"]


def test_two_of_three_that_die_at_once_are_both_noticed() -> None:
    async def kill(_: Bus, generators: Mapping[str, Generator]) -> None:
        generators["c"].hold("c1")
        await asyncio.sleep(0.2)
        generators["b"].kill()
        generators["c"].kill()

    assert play(kill).released_turns == ["b1", "b2", "c1"]


def test_each_generator_asks_two_others() -> None:
    """The number of questions grows with the number of generators, not with its square."""
    counted = {}
    for names in ("abcde", "abcdefghij"):
        bus = play(lambda *_: asyncio.sleep(0), names=names)
        counted[len(names)] = bus.questions / len(names)
    assert counted[10] == pytest.approx(counted[5], rel=0.05)


# Faults around the live generator b. No lease may be released.


async def freeze(_: Bus, generators: Mapping[str, Generator]) -> None:
    generators["b"].link.is_frozen = True
    await asyncio.sleep(5)
    generators["b"].link.is_frozen = False


async def stop_the_loop(_: Bus, generators: Mapping[str, Generator]) -> None:
    generators["b"].link.is_frozen = True
    await asyncio.sleep(1)
    generators["b"].link.is_frozen = False


async def flap(_: Bus, generators: Mapping[str, Generator]) -> None:
    """It is disconnected for a moment, frozen, and disconnected for a moment again, at different times."""
    link = generators["b"].link
    for step in range(20):
        link.is_connected = False
        await asyncio.sleep(0.15)
        link.is_connected = link.is_frozen = True
        await asyncio.sleep(0.9 + 0.02 * step)
        link.is_connected = link.is_frozen = False
        await asyncio.sleep(0.15)
        link.is_connected = True
        await asyncio.sleep(10)


async def freeze_and_kill(_: Bus, generators: Mapping[str, Generator]) -> None:
    """What it held is not known any more."""
    generators["b"].link.is_frozen = True
    await asyncio.sleep(2 * ANSWER_S_MAX + 1)
    generators["b"].kill()


async def reconnect(_: Bus, generators: Mapping[str, Generator]) -> None:
    for _step in range(20):
        generators["b"].link.is_connected = False
        await asyncio.sleep(0.19)
        generators["b"].link.is_connected = True
        await asyncio.sleep(0.31)


async def restart_nats(bus: Bus, generators: Mapping[str, Generator]) -> None:
    """All lose the connection, and connect again one after the other."""
    loop = asyncio.get_running_loop()
    for generator in generators.values():
        generator.link.is_connected = False
    for name in ("a", "c", "b"):
        await asyncio.sleep(0.4)
        generators[name].link.is_connected = True
        generators[name].link.settled_since = loop.time()


async def kill_the_other_nats_server(bus: Bus, generators: Mapping[str, Generator]) -> None:
    bus.servers.discard(SERVERS["two"])
    generators["b"].link.is_connected = False
    await asyncio.sleep(0.8)
    generators["b"].link.is_connected = True
    generators["b"].link.server = SERVERS["one"]


async def restart_the_other_nats_server(bus: Bus, generators: Mapping[str, Generator]) -> None:
    """It answers again before the generator is connected."""
    bus.servers.discard(SERVERS["two"])
    bus.servers.add(restarted := Server("two", "N3"))
    generators["b"].link.is_connected = False
    await asyncio.sleep(0.8)
    generators["b"].link.is_connected = True
    generators["b"].link.server = restarted


async def cut_routes(bus: Bus, generators: Mapping[str, Generator]) -> None:
    """The nats-server of b is not reached, nor b, for 20 s. b lives."""
    await kill_the_other_nats_server(bus, {"b": generators["b"]})
    generators["b"].link.is_connected = False
    await asyncio.sleep(20)
    generators["b"].link.is_connected = True


async def lame_duck(_: Bus, generators: Mapping[str, Generator]) -> None:
    """Its nats-server has announced its end, and lives on while its clients leave."""
    generators["b"].link.server = None
    await asyncio.sleep(1)
    generators["b"].link.is_connected = False
    await asyncio.sleep(0.8)
    generators["b"].link.is_connected = True
    generators["b"].link.server = SERVERS["one"]


async def leave(_: Bus, generators: Mapping[str, Generator]) -> None:
    """It has handed over its turns. Another one has not begun them yet."""
    await generators["b"].watch.leave()
    generators["b"].kill()


async def lose_the_log(_: Bus, generators: Mapping[str, Generator]) -> None:
    for name in ("a", "c"):
        generators[name].log.is_up = False
    generators["b"].kill()


async def miss_the_death(_: Bus, generators: Mapping[str, Generator]) -> None:
    """The watchers could not ask for 3 s: another generator may hold by now what the dead one held then."""
    for name in ("a", "c"):
        generators[name].link.is_connected = False
    await asyncio.sleep(1.5)
    generators["b"].kill()
    await asyncio.sleep(1.5)
    for name in ("a", "c"):
        generators[name].link.is_connected = True


async def announce_an_absent_one(bus: Bus, generators: Mapping[str, Generator]) -> None:
    """As a generator whose user of NATS may publish and not subscribe. It was never there, so it cannot be gone."""
    bus.newest["x"] = "old"
    await generators["a"].link.notify(Notice("here", "old"))


@pytest.mark.parametrize(
    ("scenario", "servers"),
    [
        (freeze, {}),
        (stop_the_loop, {}),
        (flap, {}),
        (freeze_and_kill, {}),
        (reconnect, {}),
        (restart_nats, {}),
        (kill_the_other_nats_server, {"b": "two"}),
        (restart_the_other_nats_server, {"b": "two"}),
        (cut_routes, {"b": "two"}),
        (lame_duck, {"b": "two"}),
        (leave, {}),
        (lose_the_log, {}),
        (miss_the_death, {}),
        (announce_an_absent_one, {}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_no_lease_is_released_while_it_is_not_sure_that_its_holder_is_dead(
    scenario: Scenario, servers: Mapping[str, str]
) -> None:
    assert play(scenario, servers=servers).released == []


def test_without_the_permission_nothing_is_watched_and_it_is_said_once() -> None:
    async def deny(_: Bus, generators: Mapping[str, Generator]) -> None:
        for generator in generators.values():
            generator.link.is_denied = True
        await asyncio.sleep(20)
        generators["b"].kill()

    assert play(deny).released == []


# What a generator holds, by version.


def test_a_question_for_the_last_version_is_answered_without_a_delivery() -> None:
    holdings = Holdings()
    first = holdings.answer(0, [held("x"), held("y")], None)
    assert [one.turn for one in first.added] == ["x", "y"]
    assert first.is_whole
    again = holdings.answer(first.version, [held("x"), held("y")], None)
    assert (again.version, again.added, again.removed, again.is_whole) == (first.version, [], [], False)


def test_answers_add_up_to_what_is_held_also_after_many_changes() -> None:
    """A watcher that has missed more changes than are kept receives everything."""
    holdings, often, seldom = Holdings(), Peer("b"), Peer("b")
    for step in range(3 * CHANGES_KEPT):
        deliveries = [held(f"{number}") for number in range(step, step + 5)]
        often.note_answer(holdings.answer(often.version, deliveries, None), step)
        if step % (CHANGES_KEPT - 1) in (0, 7):
            seldom.note_answer(holdings.answer(seldom.version, deliveries, None), step)
            assert sorted(one.turn for one in seldom.held) == sorted(one.key.turn for one in deliveries)
        assert sorted(one.turn for one in often.held) == sorted(one.key.turn for one in deliveries)


def test_the_watched_ones_follow_in_the_circle_of_names() -> None:
    for own, watched in {"a": ["b", "c"], "b": ["c", "d"], "c": ["d", "a"], "d": ["a", "b"]}.items():
        peers = Peers(own)
        for name in "dacb":
            peers.add(name)
        assert [peer.name for peer in peers.watched()] == watched
