"""Features beside the core: their settings are read with those of the core."""

from typing import Annotated

import msgspec
from msgspec import Meta

from tailrace.proto.runtime.settings import extend, read, select, table


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
