"""Features beside the core: their settings are read with those of the core, and each step of a submission is one's."""

from typing import Annotated
from unittest.mock import AsyncMock, Mock

import msgspec
import pytest
from msgspec import Meta

from tailrace.features.generators import FEATURES
from tailrace.features.prompt_cache.generator import cache_prompt
from tailrace.features.structured_output.generator import add_correction, request_schema
from tailrace.gateway import app
from tailrace.gateway.auth.admission import Admissions, Limiter
from tailrace.gateway.clients.native.text_stream import TEXT
from tailrace.gateway.feature import Feature, Parts
from tailrace.gateway.serve import start
from tailrace.gateway.services import Gateway
from tailrace.gateway.settings import Settings
from tailrace.gateway.streaming.dialect import Dialect
from tailrace.gateway.turns.optional_steps import OptionalSteps, join_steps
from tailrace.gateway.turns.store_trace import with_trace
from tailrace.generators import feature as generator_feature
from tailrace.generators.feature import join_hooks
from tailrace.persistence import feature as persistence_feature
from tailrace.persistence.store import Store
from tailrace.persistence.tables import Deletion, Tables
from tailrace.proto.ids import Tenant
from tailrace.proto.records import GetTurn, ListTurns
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
    assert joined == OptionalSteps(check_webhook=webhook.check_webhook, add_trace=with_trace)
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


def test_no_feature_replaces_the_service_or_the_route_of_another_one() -> None:
    """The endpoints of one feature would get the service of the other; of two equal routes, one is never called."""
    gateway = Gateway(*(Mock() for _ in Gateway._fields))
    feature = Feature[NoSettings](NoSettings, lambda _gateway, _settings: Parts())
    with pytest.raises(ValueError, match=r"two parts provide the service <class '.*\.Panels'>"):
        app.app(gateway, [(feature, Parts((Panels(),))), (feature, Parts((Panels(panels=5),)))])
    route = msgspec.structs.replace(app.ROUTES[0], method="GET", path="/v1/panels")
    with pytest.raises(ValueError, match="the route GET /v1/panels"):
        app.routes_of([feature._replace(routes=[route])] * 2)


def test_no_feature_of_a_generator_replaces_a_handler() -> None:
    """Neither of the core nor of another feature."""

    async def answer(_tenant: Tenant, body: bytes) -> bytes:
        return body

    of_one = generator_feature.Parts(handlers={"panels": answer})
    assert [*generator_feature.join_handlers({"models": answer}, [of_one])] == ["models", "panels"]
    for of_core, parts in (({"panels": answer}, [of_one]), ({}, [of_one, of_one])):
        with pytest.raises(ValueError, match="the query panels"):
            generator_feature.join_handlers(of_core, parts)


def test_a_feature_of_persistence_replaces_a_handler_of_the_core_and_of_no_other_feature() -> None:
    """Search answers the core's list of turns."""
    of_core, of_one, of_other = AsyncMock(), AsyncMock(), AsyncMock()
    search = persistence_feature.Parts([(ListTurns, of_one)])
    joined = persistence_feature.join_handlers([(GetTurn, of_core), (ListTurns, of_core)], [search])
    assert joined == [(GetTurn, of_core), (ListTurns, of_one)]
    with pytest.raises(ValueError, match="the query turns"):
        persistence_feature.join_handlers([], [search, persistence_feature.Parts([(ListTurns, of_other)])])


def test_no_feature_replaces_the_deletion_of_a_resource() -> None:
    """The rows of the core or of another feature would stay."""
    with pytest.raises(ValueError, match="the deletion of a session"):
        Store(Mock(), [Tables("", deletions={"session": Deletion("session_turn_ids")})])


def test_the_marks_of_the_prompt_cache_come_after_the_schema_and_before_the_correction() -> None:
    """The schema may be in the system prompt. The first call of a turn, which fills the cache, has no correction."""
    found = join_hooks(FEATURES).all_filters
    assert found.index(request_schema) < found.index(cache_prompt) < found.index(add_correction)
