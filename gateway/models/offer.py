"""The models that this gateway offers, and how a request's model name is resolved.

They are the models of the table and those that Anthropic lists for the operator's key. Once Anthropic has listed any
model of the table, its unlisted models are not offered, except those of the operator's file. Model lists, requests and
error messages use this rule.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import msgspec

from tailrace.gateway.models.capabilities import update_supports
from tailrace.proto.errors import Refused
from tailrace.proto.model_records import ListedModel
from tailrace.proto.models import LIKE_CLAUDE, Model, Supports, is_built_in, models, newest_of_line, resolve_model

Listed = Mapping[str, ListedModel]
"""The models that Anthropic lists, by the ids of the table, or by their own ids."""
QUOTED_CHARS_MAX = 64
DATED = re.compile(r"claude-.+-[0-9]{8}")


@dataclass(frozen=True)
class Offer:
    """The offered models. `listed`: None until Anthropic has answered. `aliases`: the operator's names for models.

    `is_simulated`: `listed` is from the simulated Claude, not from Anthropic.
    """

    listed: Listed | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    is_simulated: bool = False

    @cached_property
    def models(self) -> list[Model]:
        """The default model is first, models that only Anthropic lists are last."""
        table, listed = models(), self.listed or {}
        is_restricted = any(name in table for name in listed)
        known = [row for row in table.values() if row.id in listed or not (is_restricted and is_built_in(row))]
        return [*known, *(build_model(info) for name, info in listed.items() if name not in table)]

    def model(self, name: str | None) -> Model:
        """Returns the model `name`, the default model for None or "". Raises Refused for an unknown name.

        A name that looks like one of Claude's is passed on, as it may be newer than the table and the list. A dated
        name, such as `claude-sonnet-4-5-20250929`, is the id of the returned model: Anthropic's API knows this name,
        and the client sees the model that it asked for.
        """
        offered = self.models
        if not name:
            return offered[0]
        found = resolve_model(name, self.aliases)
        if found is not None and found in offered:
            named = self.aliases.get(name, name)
            is_dated = named in found.aliases and DATED.fullmatch(named) is not None
            return msgspec.structs.replace(found, id=named) if is_dated else found
        by_id = {model.id: model for model in offered}
        if found is None and (passed := by_id.get(name) or newest_of_line(name, offered)) is not None:
            return passed
        if found is None and LIKE_CLAUDE.fullmatch(name):
            return Model(id=name)
        names = ", ".join(by_id)
        raise Refused(
            "model_not_found",
            f"unknown model `{name[:QUOTED_CHARS_MAX]}`; choose one of {names}; "
            "the operator can define aliases with TAILRACE_MODEL_ALIASES, and models with TAILRACE_MODELS_FILE",
            param="model",
        )


def build_model(info: ListedModel) -> Model:
    """Returns a model that the table does not have: with Anthropic's limits and features, and without prices."""
    return Model(
        id=info.id,
        input_tokens_max=info.max_input_tokens,
        output_tokens_max=info.max_tokens,
        supports=update_supports(Supports(), bytes(info.capabilities)),
    )
