"""The estimate of tokens and cost of a request."""

import asyncio
import base64

import msgspec
import pytest

from tailrace.features.limits.cost_estimate import IMAGE_TOKENS, PAGE_TOKENS, SCHEMA_RETRY_TOKENS, estimate_request
from tailrace.proto.entries import Message, Request
from tailrace.proto.usage import PIECE_CHARS, utf8_bytes
from tests.harness.loop_pause import longest_lock
from tests.harness.turn_builder import request

TEXT = "seven characters, seven times over, is forty-nine"
PICTURE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 1_000_000}}
BLOB = {"tailrace:blob": "0" * 64, "bytes": 700_000}
PDF = base64.b64encode(b"%PDF-1.4\n" + 12 * b"9 0 obj\n<< /Type /Page >>\nendobj\n").decode()
LIFTED_PICTURE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": BLOB}}
LIFTED = {"type": "text", "text": BLOB}


def test_text_counts_3_5_characters_a_token_and_the_answer_max_tokens() -> None:
    assert len(TEXT) == 49
    turn_request = request(
        messages=[Message("user", TEXT), Message("user", [{"type": "text", "text": TEXT}])], max_tokens=100
    )
    # The words of the block count, too: 14 + 14 + 4.
    assert estimate_request(turn_request).tokens == 132
    with_system = request(messages=[Message("user", TEXT)], system=TEXT, tools=[{TEXT: TEXT}], max_tokens=100)
    assert estimate_request(with_system).tokens == 156


@pytest.mark.parametrize(("text", "size"), [("河" * 700, 2100), ("\U0001f30a" * 700, 2800), ("é" * 700, 1400)])
def test_text_of_other_scripts_counts_by_its_bytes(text: str, size: int) -> None:
    """It has more tokens than as many characters of English."""
    tokens = [estimate_request(request(messages=[Message("user", one)], max_tokens=1)).tokens for one in (text, "")]
    assert tokens[0] - tokens[1] == size * 2 // 7


def test_a_long_text_has_the_bytes_of_all_its_pieces() -> None:
    """Also with a lone surrogate, which UTF-8 does not have."""
    assert utf8_bytes("é" * PIECE_CHARS + "\ud800河") == 2 * PIECE_CHARS + 6


@pytest.mark.parametrize(
    "block",
    [
        {"type": "text", "text": "河" * 10_000_000},
        {"type": "document", "source": {"type": "base64", "data": base64.b64encode(bytes(20_000_000)).decode()}},
    ],
    ids=["text", "document"],
)
async def test_the_event_loop_runs_while_a_thread_estimates_30_mb(block: dict[str, object]) -> None:
    """A thread that decodes them in one piece would hold the interpreter lock for most of the time."""
    long = request(messages=[Message("user", [block])])
    estimating = asyncio.create_task(asyncio.to_thread(estimate_request, long))
    assert await longest_lock(estimating) < 1 / 3


@pytest.mark.parametrize("value", [1234567, 12345.6, True, [], ""])
def test_numbers_and_empty_lists_count_too(value: object) -> None:
    """A thousand concurrent turns with a tool of 10,000 numbers must reserve what they cost."""
    tool = {"name": "t", "input_schema": {"enum": [value] * 10_000}}
    size = len(msgspec.json.encode(value)) + 1 if value not in ("", []) else 1
    held = estimate_request(request(messages=[Message("user", "hi")], tools=[tool], max_tokens=1)).tokens
    assert held >= size * 10_000 * 2 // 7


@pytest.mark.parametrize("block", [PICTURE, LIFTED_PICTURE])
def test_an_image_counts_as_one_image(block: dict[str, object]) -> None:
    """A million characters of base64 are one image, stored as a blob or not."""
    tokens = estimate_request(request(messages=[Message("user", [block])], max_tokens=1)).tokens
    assert IMAGE_TOKENS < tokens < IMAGE_TOKENS + 10


@pytest.mark.parametrize("type_", ["base64", "url", "file"])
def test_a_source_that_is_not_of_an_image_counts_as_text(type_: str) -> None:
    """Otherwise the input of a tool call could hide most of its tokens from the limits."""
    call = {"type": "tool_use", "id": "1", "name": "t", "input": {"type": type_, "t": "x" * 350_000}}
    tokens = estimate_request(request(messages=[Message("assistant", [call])], max_tokens=1)).tokens
    assert tokens > 350_000 / 4


@pytest.mark.parametrize(
    ("source", "pages"),
    [
        ({"type": "base64", "media_type": "application/pdf", "data": PDF}, 12),
        ({"type": "base64", "media_type": "application/pdf", "data": BLOB}, 27),
        ({"type": "url", "url": "https://example.com/long.pdf"}, 100),
        ({"type": "file", "file_id": "file_1"}, 100),
    ],
    ids=["inline", "lifted", "url", "file"],
)
def test_a_document_counts_by_its_pages(source: dict[str, object], pages: int) -> None:
    """Where the content is missing, pages are estimated by size, or are a constant."""
    block = {"type": "document", "source": source, "title": "T"}
    tokens = estimate_request(request(messages=[Message("user", [block])], max_tokens=1)).tokens
    assert pages * PAGE_TOKENS < tokens < pages * PAGE_TOKENS + 10


def test_a_prompt_counts_at_most_the_context_window() -> None:
    """The model refuses a longer one, which costs nothing."""
    document = {"type": "document", "source": {"type": "url", "url": "https://example.com/long.pdf"}}
    turn_request = request(model="claude-sonnet-5-5", messages=[Message("user", [document] * 9)], max_tokens=5)
    assert estimate_request(turn_request).tokens == 1_000_005


MARKED = [{"type": "text", "text": TEXT, "cache_control": {"type": "ephemeral"}}]
MARKED_1H = [{"type": "text", "text": TEXT, "cache_control": {"type": "ephemeral", "ttl": "1h"}}]


@pytest.mark.parametrize(
    ("kept", "price_nano_usd"),
    [
        (request(messages=[Message("user", TEXT * 100)], max_tokens=1), 2000),
        (request(messages=[Message("user", TEXT * 100)], max_tokens=1, cache="5m"), 2500),
        (request(messages=[Message("user", TEXT * 100)], max_tokens=1, cache="auto"), 2500),
        (request(messages=[Message("user", TEXT * 100)], max_tokens=1, cache="1h"), 4000),
        (request(messages=[Message("user", MARKED)], max_tokens=1), 2500),
        (request(messages=[Message("user", MARKED_1H)], max_tokens=1), 4000),
        (request(tools=[{"name": TEXT, "cache_control": {"type": "ephemeral", "ttl": "1h"}}], max_tokens=1), 4000),
        (request(options={"cache_control": {"type": "ephemeral", "ttl": "1h"}}, max_tokens=1), 4000),
    ],
    ids=["not", "5m", "auto", "1h", "marked", "marked 1h", "tool", "options"],
)
def test_a_cached_prompt_counts_at_the_cache_write_price(kept: Request, price_nano_usd: int) -> None:
    """Sonnet 5.5: 1.25 times for five minutes, twice for an hour, by the turn or by marks of the client."""
    estimate = estimate_request(kept)
    assert estimate.tokens > 1
    assert estimate.nano_usd == (estimate.tokens - 1) * price_nano_usd + 10_000


def test_an_answer_with_a_schema_counts_twice_in_tokens() -> None:
    """The second call has the first answer in its prompt; a message batch makes no second call. Its money is a step."""
    schema = {"type": "object", "properties": {TEXT: {"type": "string"}}}
    wanted = {"output_config": {"format": {"type": "json_schema", "schema": schema}}}
    turn_request = request(messages=[Message("user", TEXT)], max_tokens=100, options=wanted)
    once = 14 + -(-len("typeobjectproperties" + TEXT + "typestring") * 2 // 7)
    assert estimate_request(turn_request).tokens == (once + 100) + (once + 100 + SCHEMA_RETRY_TOKENS + 100)
    assert estimate_request(turn_request).nano_usd == once * 2000 + 100 * 10_000
    batched = request(messages=[Message("user", TEXT)], max_tokens=100, options=wanted, via="message_batches")
    assert estimate_request(batched).tokens == once + 100


def test_a_text_stored_as_a_blob_counts_in_full() -> None:
    """The model gets all of it in each turn of the conversation."""
    tokens = estimate_request(request(messages=[Message("user", [LIFTED])], max_tokens=1)).tokens
    assert 200_000 < tokens < 200_010


def test_fast_mode_counts_at_its_multiple() -> None:
    """Opus 4.6 costs six times as much in fast mode, others twice."""
    slow = request(model="claude-opus-4-6", max_tokens=100)
    fast = request(model="claude-opus-4-6", max_tokens=100, options={"speed": "fast"})
    assert estimate_request(fast).nano_usd == 6 * (estimate_request(slow).nano_usd or 0) > 0


def test_the_cost_uses_the_models_prices_up_to_max_cost() -> None:
    """Sonnet 5.5: 2 and 10 dollars a million tokens; the cost of a model without a price is unknown."""
    turn_request = request(messages=[Message("user", TEXT)], max_tokens=100)
    assert estimate_request(turn_request).nano_usd == 14 * 2000 + 100 * 10_000
    cut = request(messages=[Message("user", TEXT)], max_tokens=100, max_cost_nano_usd=50_000)
    assert estimate_request(cut).nano_usd == 50_000
    assert estimate_request(request(model="nobody", max_tokens=100)).nano_usd is None
    # The input is paid for before any output could be cut.
    cut = request(messages=[Message("user", TEXT)], max_tokens=100, max_cost_nano_usd=5)
    assert estimate_request(cut).nano_usd == 14 * 2000
    halved = estimate_request(request(messages=[Message("user", TEXT)], max_tokens=100, via="message_batches"))
    assert (halved.nano_usd, halved.tokens) == ((14 * 2000 + 100 * 10_000) // 2, estimate_request(turn_request).tokens)
