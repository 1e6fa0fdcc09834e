"""Order of the backends for a turn: the setting `backends`, and the backend after one that failed. Pure.

A turn's order lasts while one generator runs the turn. The log holds only the backend of the last attempt: a generator
that takes over begins with that backend.
"""

from collections.abc import Mapping

import msgspec

from tailrace.proto.errors import CODES, REFUSED_REQUEST, BackendError, SettingsInvalid
from tailrace.proto.models import find_model, models

# The backend that calls Anthropic's own API. The others have neither message batches nor token counts.
CLAUDE = "claude"
# Errors that another backend may not have. Any other error, for example a deadline, would end the next attempt too.
FAILOVER_CODES = (REFUSED_REQUEST - {"blob_expired"}) | {
    "backend_rate_limited",
    "backend_overloaded",
    "backend_unreachable",
    "backend_failed",
    "backend_stalled",
    "backend_broken",
    "backend_unreadable",
    "backend_refused_key",
}
# Errors of a model that breaks the rules of its API. Each ends its attempt, so that the log counts them; the same error
# a second time ends the turn (PROTOCOL R118): see turn_runner.is_repeated_fault.
REPEATED_FAULTS = frozenset({"backend_unreadable"})


class Candidate(msgspec.Struct, frozen=True):
    """A backend that may answer a turn, and its own name for the model if the operator configured one."""

    backend: str
    model_id: str | None = None
    is_single: bool = False
    """Whether the next candidate is called after a single call."""


class BackendOrder(msgspec.Struct, frozen=True):
    """The backends for one turn: the current one first, then those that follow. At least one."""

    candidates: tuple[Candidate, ...]
    untried: int
    """The number of `candidates` that were not called for this turn yet. They come first."""

    @property
    def current(self) -> Candidate:
        return self.candidates[0]

    @property
    def has_untried(self) -> bool:
        """Whether a later backend was not called for this turn yet."""
        return self.untried > 1

    @property
    def is_repeat(self) -> bool:
        """Whether the current backend has failed this turn before."""
        return self.untried <= 0

    @property
    def alone(self) -> "BackendOrder":
        """The order with the current backend only."""
        return BackendOrder(self.candidates[:1], 1)

    def after_failure(self, error: BackendError, *, has_begun: bool) -> "BackendOrder | None":
        """Returns the order after an attempt that failed with `error`; None if no backend could do better.

        `has_begun`: readers have seen the beginning of an answer. Otherwise, a request that one backend has refused is
        not sent to another, and a failed backend is not called again if the attempt has already repeated the call.
        """
        if error.code not in FAILOVER_CODES or (error.code in REFUSED_REQUEST and not has_begun):
            return None
        failed, *others = self.candidates
        is_kept = CODES[error.code].is_retryable and (has_begun or error.code in REPEATED_FAULTS)
        left = (*others, failed) if is_kept else tuple(others)
        return BackendOrder(left, self.untried - 1) if left else None


class BackendOrders(msgspec.Struct, frozen=True):
    """The parsed setting `backends`: a list for all models, and lists of single models."""

    common: tuple[Candidate, ...]
    by_model: Mapping[str, tuple[Candidate, ...]] = {}

    @property
    def backends(self) -> list[str]:
        """All names of backends, in order, each once."""
        lists = (self.common, *self.by_model.values())
        return list(dict.fromkeys(candidate.backend for candidates in lists for candidate in candidates))

    def order_for(self, model: str, last: str = "") -> BackendOrder:
        """Returns the order for a turn with `model`, beginning with `last`, the backend of its last attempt."""
        known = find_model(model)
        candidates = self.by_model.get(known.id if known else model, self.common)
        first = next((index for index, candidate in enumerate(candidates) if candidate.backend == last), 0)
        return BackendOrder((*candidates[first:], *candidates[:first]), len(candidates))

    def claude_model_id(self, model: str, purpose: str) -> str:
        """Returns the name of `model` for the backend `claude`, the only backend that can do what `purpose` names.

        Raises BackendError if the operator lets only other backends answer `model`.
        """
        found = next((one for one in self.order_for(model).candidates if one.backend == CLAUDE), None)
        if found is None:
            why = f"{purpose} need the backend `{CLAUDE}`, and {model} has others: TAILRACE_BACKENDS"
            raise BackendError("backend_refused_request", why)
        return found.model_id or model


def parse_backends(text: str) -> BackendOrders:
    """Parses the setting `backends`: `BACKEND, BACKEND…; MODEL = BACKEND:MODEL_ID, …; …`. Raises SettingsInvalid.

    Does not check whether the backends exist.
    """
    common, *rows = (part.strip() for part in text.split(";"))
    by_model: dict[str, tuple[Candidate, ...]] = {}
    for row in filter(None, rows):
        name, _, listed = (part.strip() for part in row.partition("="))
        model = find_model(name)
        if model is None or model.id in by_model:
            raise _invalid(f"{row!r} is not MODEL = BACKEND, … with another one of {', '.join(models())}")
        by_model[model.id] = _parse_list(listed)
    return BackendOrders(_parse_list(common), by_model)


def _parse_list(text: str) -> tuple[Candidate, ...]:
    candidates: list[Candidate] = []
    for part in text.split(","):
        name, _, model_id = (word.strip() for word in part.partition(":"))
        if not name or "=" in name or name in (one.backend for one in candidates):
            raise _invalid(f"{text!r} is not a list of backends, each named once")
        candidates.append(Candidate(name, model_id or None))
    return tuple(candidates)


def _invalid(message: str) -> SettingsInvalid:
    return SettingsInvalid(f"TAILRACE_BACKENDS: {message}")
