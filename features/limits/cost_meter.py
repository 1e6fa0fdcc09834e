"""CostMeter: counts what a turn costs while the model answers (PROTOCOL R23). Pure."""

from tailrace.proto.entries import Request
from tailrace.proto.fold import Turn
from tailrace.proto.pricing import price_calls
from tailrace.proto.usage import ESTIMATE_BYTES, ESTIMATE_TOKENS, CallUsage
from tailrace.proto.usage_meter import UsageMeter

PRICED_TOKENS = 1000


class CostMeter(UsageMeter):
    """Also counts the cost of the turn: of this attempt's calls and of the calls before it."""

    def __init__(self, request: Request, turn: Turn) -> None:
        """`turn` is the fold that includes this attempt."""
        super().__init__()
        self._model = request.model
        self._before = price_calls(self._model, turn.calls_before).total.cost_nano_usd
        self._tokens_left = request.max_tokens - turn.generated_tokens

    @property
    def cost_nano_usd(self) -> int:
        """In nano-dollars, without parts at an unknown price. The gateway refuses a limit for a model without a price.

        The model reports a step of a call (a compaction, another model's answer) when the step is over.
        """
        return self._before + price_calls(self._model, self.calls).total.cost_nano_usd

    @property
    def tokens_left(self) -> int:
        """How many output tokens may follow. Below 0: how many more are estimated than the request allows."""
        return self._tokens_left - sum(call.output_tokens for call in self.calls)


def output_price(request: Request) -> int:
    """Returns the price of an output token for `request`, in nano-dollars, rounded up; 1 at least."""
    options = request.options or {}
    call = CallUsage(
        output_tokens=PRICED_TOKENS, speed=options.get("speed"), inference_geo=options.get("inference_geo")
    )
    return max(1, -(-price_calls(request.model, [call]).total.cost_nano_usd // PRICED_TOKENS))


def text_bytes(nano_usd: int, token_price: int) -> int:
    """Returns how many bytes of an answer cost less than `nano_usd`, at `token_price` for each token."""
    return nano_usd // token_price * ESTIMATE_BYTES // ESTIMATE_TOKENS
