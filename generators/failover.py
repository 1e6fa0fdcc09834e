"""Whom to ask for an answer: an operator's lists of backends, and who of a list is next when one has failed. Pure.

A list is a turn's own while one generator carries it. Only whose attempt it was stands in the log: whoever takes the
turn over begins with that one, and finds out for itself about the others.
"""

from collections.abc import Mapping

import msgspec

from tailrace.proto.errors import CODES, BackendError, SettingsInvalid
from tailrace.proto.models import find_model, models

# What another backend may not have. Whatever else breaks an attempt, a deadline say, would break the next one, too.
FAILOVER_CODES = frozenset(
    {
        "backend_rate_limited",
        "backend_overloaded",
        "backend_unreachable",
        "backend_failed",
        "backend_stalled",
        "backend_broken",
        "backend_refused_key",
        "backend_refused_request",
    }
)


class Source(msgspec.Struct, frozen=True):
    """A backend, and its own name for the model when the operator has given one."""

    backend: str
    model_id: str | None = None


class BackendOrder(msgspec.Struct, frozen=True):
    """Who is asked now stands first, then those who follow. At least one."""

    sources: tuple[Source, ...]
    untried: int
    """How many of them have not been asked yet: the first ones."""

    @property
    def now(self) -> Source:
        return self.sources[0]

    @property
    def is_repeat(self) -> bool:
        """Whether who is asked now has failed this turn before."""
        return self.untried <= 0

    def after(self, error: BackendError, *, has_begun: bool) -> "BackendOrder | None":
        """The list after an attempt that broke off with `error`; None when nobody could do better.

        `has_begun`: somebody's answer to this turn has been shown. Before that a request that is refused is a bad one,
        and whom all the calls of an attempt could not reach is not asked again.
        """
        if error.code not in FAILOVER_CODES or (error.code == "backend_refused_request" and not has_begun):
            return None
        failed, *others = self.sources
        is_kept = has_begun and CODES[error.code].is_retryable
        left = (*others, failed) if is_kept else tuple(others)
        return BackendOrder(left, self.untried - 1) if left else None


class BackendOrders(msgspec.Struct, frozen=True):
    """The setting `backends`: a list for all models, and those of models that have their own."""

    common: tuple[Source, ...]
    own: Mapping[str, tuple[Source, ...]] = {}

    @property
    def backends(self) -> list[str]:
        """All that are named, in order, each once."""
        lists = (self.common, *self.own.values())
        return list(dict.fromkeys(source.backend for sources in lists for source in sources))

    def of(self, model: str, last: str = "") -> BackendOrder:
        """The list for a turn that asks for `model`, beginning with `last`, whose attempt was the turn's last one."""
        known = find_model(model)
        sources = self.own.get(known.id if known else model, self.common)
        begin = next((place for place, source in enumerate(sources) if source.backend == last), 0)
        return BackendOrder((*sources[begin:], *sources[:begin]), len(sources))


def parse_backends(text: str) -> BackendOrders:
    """The setting `backends`, `BACKEND, BACKEND…; MODEL = BACKEND:ITS NAME, …; …`. Raises SettingsInvalid.

    What backends there are is not checked here.
    """
    common, *rows = (part.strip() for part in text.split(";"))
    own: dict[str, tuple[Source, ...]] = {}
    for row in filter(None, rows):
        name, _, listed = (part.strip() for part in row.partition("="))
        model = find_model(name)
        if model is None or model.id in own:
            raise invalid(f"{row!r} is not MODEL = BACKEND, … with another one of {', '.join(models())}")
        own[model.id] = read_list(listed)
    return BackendOrders(read_list(common), own)


def read_list(text: str) -> tuple[Source, ...]:
    sources: list[Source] = []
    for part in text.split(","):
        name, _, model_id = (word.strip() for word in part.partition(":"))
        if not name or "=" in name or name in (source.backend for source in sources):
            raise invalid(f"{text!r} is not a list of backends, each named once")
        sources.append(Source(name, model_id or None))
    return tuple(sources)


def invalid(why: str) -> SettingsInvalid:
    return SettingsInvalid(f"TAILRACE_BACKENDS: {why}")
