"""The models of the simulated Claude, independent of the product's model data."""

from typing import Any

import msgspec

EFFORTS = ("low", "medium", "high", "xhigh", "max")
FOUR = ("low", "medium", "high", "max")
ADAPTIVE = ("adaptive", "disabled")
BUDGET = ("enabled", "disabled")


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model and what it accepts. `alias` is the id without its date; empty if the id has no date."""

    id: str
    alias: str = ""
    display_name: str
    created_at: str
    max_input_tokens: int = 1_000_000
    max_tokens: int = 128_000
    is_prefillable: bool = False  # the 4.5 models were the last to continue an assistant message
    takes_sampling: bool = False  # temperature, top_p and top_k
    takes_forced_tools: bool = True  # a `tool_choice` of `any` or `tool`
    binds_thinking: bool = False  # thinking comes back only after what stood before it: page "Prefix checks …"
    thinking: tuple[str, ...] = ("adaptive",)
    efforts: tuple[str, ...] = EFFORTS

    @property
    def takes_system_messages(self) -> bool:
        """Whether `messages` may have system messages. Claude Opus 4.8 is the first (vercel/ai#15674)."""
        return self.binds_thinking or self.created_at >= "2026-05-28"

    def card(self) -> dict[str, Any]:
        """Returns the model's object in GET /v1/models."""
        return {
            "type": "model",
            "id": self.id,
            "display_name": self.display_name,
            "created_at": f"{self.created_at}T00:00:00Z",
            "lifecycle": "active",
            "max_input_tokens": self.max_input_tokens,
            "max_tokens": self.max_tokens,
            "capabilities": {
                "batch": support(is_there=True),
                "image_input": support(is_there=True),
                "pdf_input": support(is_there=True),
                "citations": support(is_there=True),
                "structured_outputs": support(is_there=True),
                "code_execution": support(is_there=False),
                "context_management": support(is_there=True),
                "server_tools": {
                    "supported": True,
                    "code_execution": support(is_there=True),
                    "web_search": support(is_there=True),
                },
                "thinking": {
                    "supported": True,
                    "types": {
                        kind: support(is_there=kind in self.thinking)
                        for kind in ("adaptive", "between_tools", "disabled", "enabled")
                    },
                },
                "effort": {
                    "supported": bool(self.efforts),
                    **{level: support(is_there=level in self.efforts) for level in EFFORTS},
                },
            },
        }


def support(*, is_there: bool) -> dict[str, bool]:
    return {"supported": is_there}


def of_4_5(alias: str, snapshot: str, display_name: str, efforts: tuple[str, ...] = ()) -> Model:
    """Returns a model of the last generation with a date in its id; the alias has none."""
    return Model(
        id=f"{alias}-{snapshot}",
        alias=alias,
        display_name=display_name,
        created_at=f"{snapshot[:4]}-{snapshot[4:6]}-{snapshot[6:]}",
        max_input_tokens=200_000,
        max_tokens=64_000,
        is_prefillable=True,
        takes_sampling=True,
        thinking=BUDGET,
        efforts=efforts,
    )


def of_4_6(id_: str, display_name: str, created_at: str) -> Model:
    thinking = ("adaptive", *BUDGET)
    return Model(
        id=id_,
        display_name=display_name,
        created_at=created_at,
        takes_sampling=True,
        thinking=thinking,
        efforts=FOUR,
    )


# As the API lists them: the newest first.
MODELS = (
    Model(
        id="claude-fable-5-2",
        display_name="Claude Fable 5.2",
        created_at="1970-01-01",
        takes_forced_tools=False,
        binds_thinking=True,
    ),
    Model(
        id="claude-haiku-5-5",
        display_name="Claude Haiku 5.5",
        created_at="2026-10-07",
        thinking=ADAPTIVE,
        binds_thinking=True,
    ),
    Model(
        id="claude-sonnet-5-5",
        display_name="Claude Sonnet 5.5",
        created_at="2026-09-28",
        takes_forced_tools=False,
        thinking=("adaptive", "between_tools"),
        binds_thinking=True,
    ),
    Model(
        id="claude-opus-5-5",
        display_name="Claude Opus 5.5",
        created_at="2026-09-22",
        takes_forced_tools=False,
        binds_thinking=True,
    ),
    Model(
        id="claude-fable-5-1",
        display_name="Claude Fable 5.1",
        created_at="2026-09-01",
        takes_forced_tools=False,
        binds_thinking=True,
    ),
    Model(id="claude-opus-5", display_name="Claude Opus 5", created_at="2026-07-24", thinking=ADAPTIVE),
    Model(id="claude-sonnet-5", display_name="Claude Sonnet 5", created_at="2026-06-30", thinking=ADAPTIVE),
    Model(id="claude-fable-5", display_name="Claude Fable 5", created_at="2026-06-09"),
    Model(id="claude-opus-4-8", display_name="Claude Opus 4.8", created_at="2026-05-28", thinking=ADAPTIVE),
    Model(id="claude-opus-4-7", display_name="Claude Opus 4.7", created_at="2026-04-16", thinking=ADAPTIVE),
    of_4_6("claude-sonnet-4-6", "Claude Sonnet 4.6", "2026-02-17"),
    of_4_6("claude-opus-4-6", "Claude Opus 4.6", "2026-02-05"),
    of_4_5("claude-opus-4-5", "20251101", "Claude Opus 4.5", ("low", "medium", "high")),
    of_4_5("claude-haiku-4-5", "20251001", "Claude Haiku 4.5"),
    of_4_5("claude-sonnet-4-5", "20250929", "Claude Sonnet 4.5"),
)
BY_NAME = {name: model for model in MODELS for name in (model.id, model.alias) if name}
