"""Tokens and cost by tenant, in the metrics of generators: only for tenants that the operator lists."""

import pytest
from prometheus_client import REGISTRY

from tailrace.generators import metrics
from tailrace.generators.settings import parse_tenants
from tailrace.proto.ids import Tenant, TurnId, TurnKey
from tests.harness import turn_builder

COST, TOKENS = "tailrace_generator_tenant_cost_dollars_total", "tailrace_generator_tenant_usage_tokens_total"


@pytest.mark.rule("S11")
def test_only_listed_tenants_are_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    turn = turn_builder.completed_turn("Light ", "scatters.").turn

    def count(tenant: str) -> None:
        metrics.count_end(TurnKey(Tenant(tenant), TurnId("t")), turn)

    def value(tenant: str) -> float | None:
        return REGISTRY.get_sample_value(TOKENS, {"kind": "output_tokens", "tenant": tenant})

    monkeypatch.setattr(metrics, "TENANTS", parse_tenants(""))
    count("acme")
    assert (value("acme"), value("other")) == (None, None)
    monkeypatch.setattr(metrics, "TENANTS", parse_tenants(" acme, beta ,"))
    for tenant in ("acme", "acme", "secret"):
        count(tenant)
    assert turn.end is not None
    tokens = turn.end.usage.output_tokens
    assert (value("acme"), value("other"), value("beta"), value("secret")) == (2 * tokens, tokens, None, None)
    assert REGISTRY.get_sample_value(COST, {"tenant": "acme"}) == pytest.approx(2 * turn.end.cost_nano_usd / 1e9)
