"""Shorter times of the comparison of budgets (PROTOCOL R148), for tests."""

from datetime import timedelta

import pytest

from tailrace.features.limits import reconciler, reconciliation


def shorten_times(monkeypatch: pytest.MonkeyPatch, round_s: float, **times: float) -> None:
    """Sets the time between two rounds, and constants of the comparison by their names, in seconds."""
    monkeypatch.setattr(reconciler, "ROUND_S", round_s)
    for name, seconds in times.items():
        for module in (reconciler, reconciliation):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, timedelta(seconds=seconds))
