"""Features beside the core: their settings are read with those of the core, and each step of a submission is one's."""

from typing import Annotated
from unittest.mock import Mock

import msgspec
import pytest
from msgspec import Meta

from tailrace.features.generators import FEATURES
from tailrace.features.max_cost.cost_meter import limit_cost
from tailrace.features.prompt_cache.generator import cache_prompt
from tailrace.features.structured_output.generator import add_correction, request_schema
from tailrace.gateway import app
from tailrace.gateway.auth.admission import Admissions, Limiter
from tailrace.gateway.clients.native.text_stream import TEXT
from tailrace.gateway.feature import Feature, Parts
from tailrace.gateway.serve import start
from tailrace.gateway.settings import Settings
from tailrace.gateway.streaming.dialect import Dialect
from tailrace.gateway.turns.optional_steps import OptionalSteps, join_steps
from tailrace.gateway.turns.store_trace import with_trace
from tailrace.generators.feature import join_hooks
from tailrace.proto.runtime.settings import NoSettings, extend, read, select, table


class Core(msgspec.Struct, frozen=True, kw_only=True):
    port: int = 8000


class Panels(msgspec.Struct, frozen=True, kw_only=True):
    panels: Annotated[int, Meta(ge=1, description="panels on a page")] = 3


def test_the_settings_of_a_feature_are_read_and_listed_with_those_of_the_core() -> None:
    both = extend(Core, [Panels])
    settings = read(both, {"TAILRACE_PORT": "9", "TAILRACE_PANELS": "5"})
    assert (settings.port, select(settings, Panels)) == (9, Panels(panels=5))
    assert isinstance(settings, Core)
    assert [row[0] for row in table(both)] == ["TAILRACE_PORT", "TAILRACE_PANELS"]
    # A process without the feature: its default.
    assert select(Core(), Panels) == Panels()


def test_the_steps_of_all_features_are_joined_and_none_is_replaced() -> None:
    """Two features with the same step would hide one of them: a limit, for example."""
    trace, webhook = OptionalSteps(add_trace=with_trace), OptionalSteps(check_webhook=lambda _: None)
    joined = join_steps(join_steps(OptionalSteps(), trace), webhook)
    assert [step for step in joined if step is not None] == [webhook.check_webhook, trace.add_trace]
    with pytest.raises(ValueError, match="add_trace"):
        join_steps(joined, trace)


def test_at_most_one_feature_has_the_limiter() -> None:
    """With two, the limits of one of them would not apply."""

    def feature(limiter: Limiter | None) -> Feature[NoSettings]:
        return Feature(NoSettings, lambda _gateway, _settings: Parts(limiter=limiter))

    def limiter_of(*features: Feature[NoSettings]) -> Limiter:
        gateway = Mock(admissions=Admissions())
        start(gateway, Settings(), features)
        limiter: Limiter = gateway.admissions.limiter
        return limiter

    own = Limiter()
    assert limiter_of(feature(None), feature(own), feature(None)) is own
    assert limiter_of(feature(None)) is not own
    with pytest.raises(ValueError, match="2 features provide the limiter"):
        limiter_of(feature(own), feature(Limiter()))


def test_a_dialect_of_a_feature_stands_beside_those_of_the_core() -> None:
    """In the routes that take a name, too. Two of one name would hide one of them: its readers get the other's."""

    def feature(dialect: Dialect) -> Feature[NoSettings]:
        return Feature(NoSettings, lambda _gateway, _settings: Parts(), dialects=(dialect,))

    own = TEXT._replace(name="own")
    assert app.dialects_of([feature(own)]) == app.dialects_of(()) | {"own": own}
    for features, is_listed in (((), False), ([feature(own)], True)):
        listed = [one for route in app.routes_of(features) for one in route.parameters if one.name == "dialect"]
        assert [("own" in one.documented["schema"]["enum"]) for one in listed] == [is_listed] * 2
    with pytest.raises(ValueError, match="two dialects have the name text"):
        app.dialects_of([feature(own._replace(name="text"))])


def test_the_cost_limit_counts_the_models_own_events() -> None:
    """Also text that other features hold or leave out is paid for. The last sink receives the events first."""
    assert join_hooks(FEATURES).sinks[-1] is limit_cost


def test_the_marks_of_the_prompt_cache_come_after_the_schema_and_before_the_correction() -> None:
    """The schema may be in the system prompt. The first call of a turn, which fills the cache, has no correction."""
    found = join_hooks(FEATURES).all_filters
    assert found.index(request_schema) < found.index(cache_prompt) < found.index(add_correction)
