"""HTTP routes of the simulated Claude."""

import itertools
from collections import deque
from collections.abc import Mapping
from functools import partial
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Send

from tailrace.deploy.simulated_claude import event
from tailrace.deploy.simulated_claude.account import CALLS_MAX, Account, AccountReport
from tailrace.deploy.simulated_claude.cache import Cache
from tailrace.deploy.simulated_claude.case import parse_case
from tailrace.deploy.simulated_claude.fault import ERROR_TYPES, Break
from tailrace.deploy.simulated_claude.message_batches import LIMIT, MessageBatch, MessageBatches
from tailrace.deploy.simulated_claude.model import MODELS
from tailrace.deploy.simulated_claude.refusal import Refusal, error_body
from tailrace.deploy.simulated_claude.reply import ParsedRequest, parse_message, reply
from tailrace.deploy.simulated_claude.request import OLD_VERSION, Request, decode, find_model, require_max_tokens
from tailrace.deploy.simulated_claude.rules import find_known, refuse_request
from tailrace.deploy.simulated_claude.settings import Settings
from tailrace.deploy.simulated_claude.stats import Stats
from tailrace.deploy.simulated_claude.thinking import INVALID, Transformation
from tailrace.deploy.simulated_claude.writer import MessageWriter, StreamWriter, WriterResponse
from tailrace.proto.decoding import DECODE_ERRORS

BODY_BYTES_MAX = 32 * 2**20  # Anthropic's limit for a Messages request
BATCH_BYTES_MAX = 256 * 2**20
REFUSED_KEY = "bad-key"
LIMITS = {"requests": 4_000, "input-tokens": 2_000_000, "output-tokens": 400_000}
RESET_AT = "2030-01-01T00:00:00Z"
PAGE = "<!doctype html><title>Captive portal</title><p>Please log in to this network."

request_numbers = itertools.count(1)


def app(host: str, *, shows_calls: bool = False, settings: Settings | None = None) -> Starlette:
    """Returns the ASGI app; GET /_sim/stats returns its `state.stats`.

    `host` is the address that the server listens on, and that requests may name. `shows_calls`: records the calls with
    their questions, and shows them at /_sim/calls and /_sim/last.
    """
    recorded = [Route("/_sim/calls", show_calls), Route("/_sim/last", show_last)] if shows_calls else []
    simulated = Starlette(
        routes=[
            Route("/v1/messages", create_message, methods=["POST"]),
            Route("/v1/messages/count_tokens", count_tokens, methods=["POST"]),
            Route("/v1/messages/batches", create_batch, methods=["POST"]),
            Route("/v1/messages/batches", list_batches),
            Route("/v1/messages/batches/{id}", show_batch),
            Route("/v1/messages/batches/{id}", delete_batch, methods=["DELETE"]),
            Route("/v1/messages/batches/{id}/cancel", cancel_batch, methods=["POST"]),
            Route("/v1/messages/batches/{id}/results", batch_results),
            Route("/v1/models", list_models),
            Route("/v1/models/{id}", show_model),
            Route("/_sim/stats", show_stats),
            Route("/_sim/reset", reset_stats, methods=["POST"]),
            Route("/_sim/cases/{name}", set_case, methods=["POST"]),
            Route("/_sim/settings", change_settings, methods=["POST"]),
            *recorded,
            Route("/_sim/expire", expire_batches, methods=["POST"]),
        ],
        exception_handlers={Refusal: handle_refusal, HTTPException: handle_not_found},
        # A page in a browser on this machine must not reach the server under a host name of its own (DNS rebinding).
        # The third name is that in deploy/container/compose.yaml, which no page's host can have.
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "simulated-claude", host])
        ],
    )
    simulated.state.stats = Stats()
    simulated.state.account = Account(calls=deque(maxlen=CALLS_MAX if shows_calls else 1))
    simulated.state.settings = settings or Settings()
    simulated.state.batches = MessageBatches(simulated.state.stats, simulated.state.settings)
    simulated.state.last = None
    simulated.state.cases = {}
    simulated.state.cache = Cache()
    return simulated


async def create_message(http: HttpRequest) -> Response:
    """Answers `POST /v1/messages` as a stream or as one message, or with the response of a fault.

    Raises Refusal for a request that Anthropic's API refuses.
    """
    request, dropped = await read(http)
    require_max_tokens(request)
    settings: Settings = http.app.state.settings
    parsed = parse_message(request, await http.body(), dropped, settings)
    stats: Stats = http.app.state.stats
    cached = http.app.state.cache.take(await http.body())
    answered = reply(parsed, stats.next_call(parsed.conversation.key), cached, http.app.state.cases)
    stats.continuations += parsed.conversation.is_continued
    stats.resumptions += bool(parsed.conversation.pending)
    stats.continuations_mismatched += answered.is_mismatched
    account: Account = http.app.state.account
    call = account.begin(parsed.conversation.key, parsed.conversation.question, answered.part.start)
    if answered.breaks and (instead := response_instead(parsed, answered.breaks)):
        stats.by_fault[answered.breaks.kind] += 1
        call.close(answered.breaks.kind)
        return instead
    if request.stream:
        return WriterResponse(StreamWriter(answered, parsed.directed, stats, call), headers("text/event-stream"))
    return WriterResponse(MessageWriter(answered, parsed.directed, stats, call), headers("application/json"))


def response_instead(parsed: ParsedRequest, breaks: Break) -> Response | None:
    """Returns the response of a fault before the answer, or None. Without a stream every status fault has one."""
    if not (breaks.is_http or (breaks.kind in ERROR_TYPES and not parsed.request.stream)):
        return None
    if breaks.kind == "html":
        return HTMLResponse(PAGE)
    more = {"retry-after": f"{parsed.directed.retry_after_s:g}"} if breaks.kind == "429" else {}
    return error(Refusal(ERROR_TYPES[breaks.kind], event.error_message(breaks.kind), more))


async def count_tokens(http: HttpRequest) -> Response:
    """Answers with the number of words. Raises Refusal."""
    return json({"input_tokens": (await read(http))[0].input_tokens})


async def create_batch(http: HttpRequest) -> Response:
    """Answers with a new message batch; sends nothing if its fault drops the response. Raises Refusal."""
    require_key(http.headers)
    require_short(http, BATCH_BYTES_MAX)
    body = await http.body()
    batch, is_answered = http.app.state.batches.create(
        body, http.headers.get("anthropic-version", OLD_VERSION), http.headers.get("anthropic-beta", "")
    )
    remember(http, body)
    if not is_answered:
        return WriterResponse(send_nothing, headers("application/json"))
    return json(batch.describe(str(http.base_url)))


async def list_batches(http: HttpRequest) -> Response:
    """Answers with a page of at most `limit` message batches, newest first. Raises Refusal."""
    require_key(http.headers)
    query = http.query_params
    limit = query.get("limit", str(LIMIT))
    page, has_more = http.app.state.batches.page(
        int(limit) if limit.isdecimal() else 0, query.get("after_id"), query.get("before_id")
    )
    shown = [batch.describe(str(http.base_url)) for batch in page]
    ends = {"first_id": page[0].id if page else None, "last_id": page[-1].id if page else None}
    return json({"data": shown, "has_more": has_more, **ends})


async def show_batch(http: HttpRequest) -> Response:
    return json(batch_of(http, "retrieve").describe(str(http.base_url)))


async def cancel_batch(http: HttpRequest) -> Response:
    """Answers with the batch, which ends a moment later. Raises Refusal for a batch that has ended."""
    batch = batch_of(http, "cancel")
    batch.cancel()
    return json(batch.describe(str(http.base_url)))


async def delete_batch(http: HttpRequest) -> Response:
    """Answers that the batch is deleted. Raises Refusal while it is in progress."""
    batch = batch_of(http)
    http.app.state.batches.delete(batch.id)
    return json({"id": batch.id, "type": "message_batch_deleted"})


async def batch_results(http: HttpRequest) -> Response:
    """Streams the results as JSON lines, in any order. Raises Refusal before the batch has ended."""
    batch = batch_of(http, "results")
    if batch.ended_at is None:
        raise Refusal("not_found_error", f"Batch {batch.id} has no results yet")
    broken = http.app.state.batches.break_results(batch)
    if broken is not None:
        return WriterResponse(partial(send_broken, *broken), headers("application/x-jsonl"))
    lines = (result.line() for result in batch.results)
    return StreamingResponse(lines, headers=headers("application/x-jsonl"))


def batch_of(http: HttpRequest, operation: str | None = None) -> MessageBatch:
    """Returns the batch in the path; `operation` is counted for its faults. Raises Refusal."""
    require_key(http.headers)
    found: MessageBatch = http.app.state.batches.get(http.path_params["id"], operation)
    return found


async def expire_batches(http: HttpRequest) -> Response:
    """Ends all running batches and containers as if a day had passed."""
    http.app.state.batches.expire()
    http.app.state.settings.containers_from += 1
    return json({})


async def send_nothing(_: Send) -> None:
    """Sends no body, because the response is dropped before that."""


async def send_broken(body: bytes, is_dropped: bool, send: Send) -> None:
    """Sends a part of a body; with `is_dropped`, ends the response without its last chunk."""
    await send({"type": "http.response.body", "body": body, "more_body": is_dropped})


async def list_models(http: HttpRequest) -> Response:
    """Answers with the cards of all models, in one page. Raises Refusal."""
    require_key(http.headers)
    cards = [model.card() for model in MODELS]
    ids = {"first_id": MODELS[0].id, "last_id": MODELS[-1].id}
    # Anthropic has no field `is_simulated`. With it, Tailrace shows its users that the answers are not Claude's.
    return json({"data": cards, "has_more": False, **ids, "is_simulated": True})


async def show_model(http: HttpRequest) -> Response:
    """Answers with the card of a model. Raises Refusal for an unknown model."""
    require_key(http.headers)
    return json(find_model(http.path_params["id"]).card())


async def show_stats(http: HttpRequest) -> Response:
    return json(http.app.state.stats)


async def show_calls(http: HttpRequest) -> Response:
    account: Account = http.app.state.account
    return json(AccountReport(list(account.calls), account.forgotten, http.app.state.batches.submitted_requests))


async def show_last(http: HttpRequest) -> Response:
    """Returns body and headers of the last request, to check the request of a gateway in between."""
    return json(http.app.state.last)


async def set_case(http: HttpRequest) -> Response:
    """Sets the events of `case=NAME`: the JSON of one event a line."""
    http.app.state.settings.known |= find_known(await http.body())
    lines = http.app.state.cases[http.path_params["name"]] = parse_case(await http.body())
    return json({"events": len(lines)})


async def change_settings(http: HttpRequest) -> Response:
    """Changes the settings that the body names. Raises Refusal."""
    settings: Settings = http.app.state.settings
    try:
        changed = msgspec.convert(msgspec.to_builtins(settings) | msgspec.json.decode(await http.body()), Settings)
    except (*DECODE_ERRORS, TypeError) as invalid:
        raise Refusal(INVALID, str(invalid)) from invalid
    for name in settings.__struct_fields__:
        setattr(settings, name, getattr(changed, name))
    return json(settings)


async def reset_stats(http: HttpRequest) -> Response:
    http.app.state.stats.reset()
    http.app.state.account = Account(deque(maxlen=http.app.state.account.calls.maxlen))
    return json(http.app.state.stats)


async def read(http: HttpRequest) -> tuple[Request, list[Transformation] | None]:
    """Returns the checked request and the thinking dropped from it, and remembers it for /_sim/last. Raises Refusal."""
    require_key(http.headers)
    require_short(http, BODY_BYTES_MAX)
    body = await http.body()
    request = decode(body, http.headers.get("anthropic-version", OLD_VERSION))
    remember(http, body)
    return request, refuse_request(body, http.app.state.settings, http.headers.get("anthropic-beta", ""))


def remember(http: HttpRequest, body: bytes) -> None:
    betas, version = (http.headers.get(f"anthropic-{name}") for name in ("beta", "version"))
    http.app.state.last = {"body": msgspec.Raw(body), "betas": betas, "version": version}


def require_short(http: HttpRequest, most: int) -> None:
    """Raises Refusal if the body is announced with more than `most` bytes."""
    if int(http.headers.get("content-length", "0")) > most:
        raise Refusal("request_too_large", "Request exceeds the maximum size")


def require_key(sent: Mapping[str, str]) -> None:
    """Accepts headers with any key but `REFUSED_KEY`; current clients send a bearer token, older ones x-api-key."""
    key = sent.get("x-api-key") or sent.get("authorization", "").removeprefix("Bearer ").strip()
    if not key:
        raise Refusal("authentication_error", "x-api-key header is required")
    if key == REFUSED_KEY:
        raise Refusal("authentication_error", event.INVALID_KEY)


async def handle_refusal(http: HttpRequest, refusal: Exception) -> Response:
    assert isinstance(refusal, Refusal)  # noqa: S101 - Starlette's type is wider than its promise
    http.app.state.stats.refused[refusal.message.rpartition(": ")[2]] += 1
    return error(refusal)


async def handle_not_found(_: HttpRequest, missing: Exception) -> Response:
    return error(Refusal("not_found_error", f"Not found: {missing}"))


def error(refusal: Refusal) -> Response:
    """Returns the response of a refusal. A 429 says that no limit has anything left."""
    sent = headers("application/json") | refusal.headers
    if refusal.status == 429:
        sent |= {f"anthropic-ratelimit-{name}-remaining": "0" for name in LIMITS}
    body = error_body(refusal.type, refusal.message, sent["request-id"])
    return Response(body, refusal.status, sent)


def json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), headers=headers("application/json"))


def headers(content_type: str) -> dict[str, str]:
    """Returns the headers that the API sends with every response."""
    limits = {
        f"anthropic-ratelimit-{name}-{what}": str(limit)
        for name, limit in LIMITS.items()
        for what in ("limit", "remaining")
    }
    resets = {f"anthropic-ratelimit-{name}-reset": RESET_AT for name in LIMITS}
    return {
        "content-type": content_type,
        "request-id": f"req_sim{next(request_numbers):012d}",
        **limits,
        **resets,
    }
