"""KeyHealth: whether the APIs of the backends refuse their keys, for the health report and a metric."""

from collections.abc import Iterable
from typing import Any

from tailrace.generators import metrics
from tailrace.proto.errors import BackendError

# `/readyz` shows this text without authentication. So it has no host, and nothing of the key or the API's answer.
REFUSED = "the model's API refuses the key of {}: check the key and its account; restart the generators with a new key"


class KeyHealth:
    """The backends whose key the API refused, until a call succeeds."""

    def __init__(self, backends: Iterable[str]) -> None:
        self._refused: dict[str, None] = {}
        self.facts: dict[str, Any] = {}
        """Fields of the health report (PROTOCOL R29)."""
        for backend in backends:
            metrics.KEY_REFUSED.labels(backend).set(0)

    def note_call(self, backend: str, error: BackendError | None) -> None:
        """Notes a call of `backend` that failed with `error`, or None for a call that succeeded.

        Other failures say nothing about the key.
        """
        is_refused = error is not None and error.code == "backend_refused_key"
        if (error is not None and not is_refused) or is_refused == (backend in self._refused):
            return
        metrics.KEY_REFUSED.labels(backend).set(is_refused)
        if is_refused:
            self._refused[backend] = None
        else:
            del self._refused[backend]
        if self._refused:
            self.facts |= {"state": "degraded", "detail": REFUSED.format(", ".join(self._refused))}
        else:
            self.facts.pop("state", None)
            self.facts.pop("detail", None)
