"""What can be asked here: the models of this gateway, by any of their names. Pure; it asks nobody.

They are the data file's, for nothing is known of others. Once Anthropic has said which of them the operator's key may
use, they are those. It is one rule for the lists, for every protocol's questions and for what a refusal names.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from tailrace.proto.errors import Refused
from tailrace.proto.model_records import ListedModel
from tailrace.proto.models import Model, models, resolve_model

Listed = Mapping[str, ListedModel]
"""What Anthropic lists, by our own ids."""
QUOTED_CHARS_MAX = 64


class Offer(NamedTuple):
    """`listed`: None as long as Anthropic has not said. `aliases`: foreign names, and what they mean here."""

    listed: Listed | None = None
    aliases: Mapping[str, str] = MappingProxyType({})

    @property
    def models(self) -> list[Model]:
        """The default one first."""
        return [model for model in models().values() if self.listed is None or model.id in self.listed]

    def model(self, name: str | None, code: str = "model_unknown") -> Model:
        """The model of that name, the default one without; raises Refused, as `code`, with the names that there are."""
        there = self.models
        found = resolve_model(name, self.aliases) if name is not None else there[0]
        if found is None or found not in there:
            names = ", ".join(model.id for model in there)
            raise Refused(
                code,
                f"there is no model `{(name or '')[:QUOTED_CHARS_MAX]}` here; there are {names}; "
                "an operator may give a name its meaning (TAILRACE_MODEL_ALIASES)",
            )
        return found
