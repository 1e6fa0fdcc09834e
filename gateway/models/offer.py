"""The models that this gateway offers, and how a request's model name is resolved.

They are the models of the data file, because prices and limits of others are unknown. Once Anthropic has listed the
models of the operator's key, they are those that are in both. Model lists, requests and error messages use this rule.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from tailrace.proto.errors import Refused
from tailrace.proto.model_records import ListedModel
from tailrace.proto.models import Model, models, resolve_model

Listed = Mapping[str, ListedModel]
"""The models that Anthropic lists, by the ids of the data file."""
QUOTED_CHARS_MAX = 64


class Offer(NamedTuple):
    """The offered models. `listed`: None until Anthropic has answered. `aliases`: the operator's names for models."""

    listed: Listed | None = None
    aliases: Mapping[str, str] = MappingProxyType({})

    @property
    def models(self) -> list[Model]:
        """The default model is first."""
        return [model for model in models().values() if self.listed is None or model.id in self.listed]

    def model(self, name: str | None, code: str = "model_unknown") -> Model:
        """Returns the model `name`, the default model for None. Raises Refused with `code` for an unknown name."""
        offered = self.models
        found = resolve_model(name, self.aliases) if name is not None else offered[0]
        if found is None or found not in offered:
            names = ", ".join(model.id for model in offered)
            raise Refused(
                code,
                f"unknown model `{(name or '')[:QUOTED_CHARS_MAX]}`; choose one of {names}; "
                "the operator can define aliases with TAILRACE_MODEL_ALIASES",
                param="model",
            )
        return found
