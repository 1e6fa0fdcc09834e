"""The other generators: which ones to watch, the leases of each, and which one is dead. Pure."""

from collections import deque
from collections.abc import Iterable
from typing import Literal

from tailrace.proto.nats import Delivery
from tailrace.proto.nats.peers import Held, Holding, Server

# Each generator watches so many others, which follow its own name in the order of names.
WATCHED = 2
CHANGES_KEPT = 1024
# The most deliveries in an answer, in a message of 130 bytes for each. The leases of further ones expire as without a
# watcher.
HELD_MAX = 2000
# An older answer proves nothing: meanwhile another generator may hold the lease of a turn that has no attempt yet.
ANSWER_AGE_MAX_S = 1.0
# A generator that lives and was disconnected has connected again by then, and answers.
ABSENT_S_MIN = 0.2

Verdict = Literal["unsure", "gone", "lease"]
"""`unsure`: ask again. `gone`: release its leases. `lease`: it may live, so its leases decide."""


class Holdings:
    """The leases of this process, and their latest changes."""

    def __init__(self) -> None:
        self._held: dict[str, Held] = {}
        """By acknowledgement subject."""
        self._changes: deque[str] = deque(maxlen=CHANGES_KEPT)
        """The acknowledgement subjects that were added or removed."""
        self._version = 0
        """The number of all changes."""

    def answer(self, known: int, deliveries: Iterable[Delivery], server: Server | None) -> Holding:
        """Returns the changes since the version `known`; everything if it is unknown or too old."""
        held = {one.ack_subject: one for one in deliveries}
        changed = [subject for subject in self._held if subject not in held]
        for subject in changed:
            del self._held[subject]
        for subject, one in held.items():
            if subject not in self._held:
                self._held[subject] = Held(one.key.tenant, one.key.turn, subject)
                changed.append(subject)
        self._changes.extend(changed)
        self._version += len(changed)
        missed = self._version - known
        if not 0 <= missed <= len(self._changes) or known == 0:
            return Holding(self._version, server, list(self._held.values())[:HELD_MAX], is_whole=True)
        recent = dict.fromkeys(list(self._changes)[len(self._changes) - missed :])
        added = [self._held[subject] for subject in recent if subject in self._held]
        return Holding(self._version, server, added, [subject for subject in recent if subject not in self._held])


class Peer:
    """Another generator, and what is known of it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.version = 0
        self.server: Server | None = None
        self.answered_at: float | None = None
        self.absent_since: float | None = None
        """The time of the first question since the last answer for which NATS found no responder."""
        self._held: dict[str, Held] = {}

    @property
    def held(self) -> list[Held]:
        """The deliveries that it held when it last answered."""
        return list(self._held.values())

    def note_answer(self, answer: Holding, now: float) -> None:
        """Notes an answer to a question that named the version of the last one."""
        if answer.is_whole:
            self._held.clear()
        self._held.update((one.ack_subject, one) for one in answer.added)
        for subject in answer.removed:
            self._held.pop(subject, None)
        self.version, self.server, self.answered_at, self.absent_since = answer.version, answer.server, now, None

    def note_absence(self, asked_at: float, now: float, *, is_settled: bool) -> Verdict:
        """Returns the verdict on a peer for which NATS has found no responder.

        `is_settled`: whether this process has been connected for long. A live peer is absent, too, while it connects
        again, and is so for all others while the nats-servers are restarted.
        """
        if self.absent_since is None:
            self.absent_since = asked_at
        is_known = self.answered_at is not None and self.absent_since - self.answered_at <= ANSWER_AGE_MAX_S
        if not is_known or not is_settled:
            return "lease"
        return "gone" if now - self.absent_since >= ABSENT_S_MIN else "unsure"


class Peers:
    """The other generators that have announced themselves."""

    def __init__(self, own: str) -> None:
        self._own = own
        self._peers: dict[str, Peer] = {}

    def __len__(self) -> int:
        return len(self._peers)

    def add(self, name: str) -> None:
        """Notes that a generator has announced itself. Does nothing for a known one, and for this one."""
        if name != self._own:
            self._peers.setdefault(name, Peer(name))

    def drop(self, name: str) -> Peer | None:
        """Forgets a generator, and returns what was known of it."""
        return self._peers.pop(name, None)

    def watched(self) -> list[Peer]:
        """Returns the generators that this one watches: the next ones in the circle of all names."""
        order = sorted(self._peers, key=lambda name: (name < self._own, name))
        return [self._peers[name] for name in order[:WATCHED]]
