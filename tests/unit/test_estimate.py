"""What a request may come to before anybody has answered it."""

import pytest

from gateway.limits.estimate import PICTURE_TOKENS, estimate_of
from proto.entries import Message
from tests.handwritten import request

TEXT = "seven characters, seven times over, is forty-nine"
PICTURE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 1_000_000}}
BLOB = {"tailrace:blob": "0" * 64, "bytes": 700_000}
LIFTED_PICTURE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": BLOB}}
LIFTED = {"type": "text", "text": BLOB}


def test_all_that_is_said_counts_and_an_answer_as_long_as_it_may_be() -> None:
    """Text at 3.5 characters a token, wherever it stands."""
    assert len(TEXT) == 49
    asked = request(messages=[Message("user", TEXT), Message("user", [{"type": "text", "text": TEXT}])], max_tokens=100)
    # The word `text` of the block counts, too: 14 + 14 + 2.
    assert estimate_of(asked).tokens == 130
    with_system = request(messages=[Message("user", TEXT)], system=TEXT, tools=[{"name": TEXT}], max_tokens=100)
    assert estimate_of(with_system).tokens == 142


@pytest.mark.parametrize("block", [PICTURE, LIFTED_PICTURE])
def test_a_picture_is_no_text(block: dict[str, object]) -> None:
    """A million characters of base64 are one picture, lifted out or not."""
    tokens = estimate_of(request(messages=[Message("user", [block])], max_tokens=1)).tokens
    assert PICTURE_TOKENS < tokens < PICTURE_TOKENS + 10


def test_a_long_text_is_as_long_when_a_conversation_goes_on_from_it() -> None:
    """Lifted out of an earlier turn, the model is told all of it again: who goes on fifty times holds fifty times."""
    tokens = estimate_of(request(messages=[Message("user", [LIFTED])], max_tokens=1)).tokens
    assert 200_000 < tokens < 200_010


def test_a_fast_answer_is_held_at_what_it_costs() -> None:
    """Opus 4.6 costs six times as much then, others twice."""
    slow = request(model="claude-opus-4-6", max_tokens=100)
    fast = request(model="claude-opus-4-6", max_tokens=100, options={"speed": "fast"})
    assert estimate_of(fast).nusd == 6 * estimate_of(slow).nusd > 0


def test_money_is_at_the_models_prices_and_no_more_than_the_turn_may_cost() -> None:
    """Sonnet 5.5: 2 and 10 dollars a million; a model without a price costs nothing."""
    asked = request(messages=[Message("user", TEXT)], max_tokens=100)
    assert estimate_of(asked).nusd == 14 * 2000 + 100 * 10_000
    assert estimate_of(request(max_cost_nusd=5, max_tokens=100)).nusd == 5
    assert estimate_of(request(model="nobody", max_tokens=100)).nusd == 0
    halved = estimate_of(request(messages=[Message("user", TEXT)], max_tokens=100, via="message_batches"))
    assert (halved.nusd, halved.tokens) == (estimate_of(asked).nusd // 2, estimate_of(asked).tokens)
