"""World: one session of the product in memory, from the body of a request to the row of its turn."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from random import Random
from typing import Any, NamedTuple

import msgspec
from starlette.datastructures import Headers

from tailrace.features.failover.circuit_breaker import CircuitBreakers
from tailrace.features.generators import FEATURES
from tailrace.features.limits.cost_limits import CostLimits
from tailrace.features.limits.limiter import Limiter
from tailrace.features.queued_turns.generator import prepare_queued
from tailrace.gateway.auth.limits import Limits
from tailrace.gateway.auth.principal import Principal
from tailrace.gateway.http.read_body import convert
from tailrace.gateway.models.offer import Offer
from tailrace.gateway.turns.cancel import cancel
from tailrace.gateway.turns.conversation import Conversations
from tailrace.gateway.turns.request_body import NewTurn, build_entry, check_turn
from tailrace.generators.backend_order import BackendOrders, Candidate
from tailrace.generators.backends import Call
from tailrace.generators.feature import join_hooks
from tailrace.generators.load_blobs import BlobLoader
from tailrace.generators.model_caller import ModelCaller
from tailrace.generators.planner import Planner
from tailrace.generators.retry import Retry
from tailrace.generators.settings import Settings
from tailrace.generators.turn_runner import TurnRunner
from tailrace.proto.chain import START
from tailrace.proto.conversation import build_context
from tailrace.proto.entries import Mode, Request
from tailrace.proto.errors import FenceLost, Refused
from tailrace.proto.fold import Turn
from tailrace.proto.ids import SessionId, Tenant, TurnId, TurnKey
from tailrace.proto.models import Model, find_model
from tailrace.proto.nats.settlement import Settlement
from tailrace.proto.ownership import WHOLE, Scope, ScopedKey
from tailrace.proto.records import Context, GetContext, GetLastTurn, GetSession, GetTurn, SessionRecord, TurnRecord
from tailrace.proto.thinking_prefix import BoundPrompt
from tailrace.proto.usage import Usage
from tailrace.protocols.ag_ui import request as ag_ui
from tailrace.protocols.ai_sdk import request as ai_sdk
from tailrace.protocols.anthropic import request as anthropic
from tailrace.protocols.openai import chat_request, responses_request
from tailrace.testing import MemoryCounters, MemoryLog, MemorySlots, MemoryStepRecords, MemoryStore
from tailrace.testing.log import BEGINNING
from tests.harness.turn_builder import NOON
from tests.promises import Budget
from tests.sessions.client import Sent
from tests.sessions.stand_in import Json, Killed, StandIn

TENANT = Tenant("t")
DEFAULTS = Settings()
ORDERS = BackendOrders((Candidate("claude"), Candidate("bedrock")))
# A further attempt follows at once.
RETRY = Retry(tries_max=1, wait_s=0.0, wait_max_s=0.0)
HOOKS = join_hooks(FEATURES)
MAX_TOKENS = 4096
# No session spends so much.
BUDGETS = Limits(usd_day=1000, usd_month=1000, running=100)
UNUSED: Any = None
OFFER = Offer()
CHECKS = [new_check() for new_check in HOOKS.checks]
FUTURE = 1_000_000


class BoundCall(NamedTuple):
    """A model call, before and after thinking was left out."""

    turn: TurnId
    before: Call
    request: Request
    mode: Mode
    bound: BoundPrompt


class History:
    """Persistence's answers to the queries of a submission, from rows in memory."""

    def __init__(self, log: MemoryLog) -> None:
        self.log = log
        self.store = MemoryStore()
        self.systems: dict[str, str | list[dict[str, Any]] | None] = {}
        """The session's prompt of each session."""
        self.order: list[TurnId] = []
        self.older: set[TurnId] = set()
        """The turns whose generator was of a version that stored no prefixes."""

    async def query(self, scope: Scope, query: Any) -> Any:
        match query:
            case GetTurn(turn):
                return await self.record(turn)
            case GetLastTurn(session):
                return await self.record((await self._of_session(session))[-1])
            case GetSession(session):
                return self.session(session, may_create=False)
            case GetContext():
                return await self._context(scope, query)
        raise NotImplementedError(query)

    async def record(self, turn: TurnId) -> TurnRecord:
        key = TurnKey(TENANT, turn)
        found = await self.store.turn(key)
        if found is None or found.outcome == "running":
            await self.store.record([self.store.build_row(key, await self.log.read_turn(ScopedKey.whole(key)))])
            found = await self.store.turn(key)
        assert found is not None
        return msgspec.structs.replace(found, prefixes=[]) if turn in self.older else found

    def session(self, name: str, *, may_create: bool) -> SessionRecord:
        if name not in self.systems:
            if not may_create:
                raise Refused("session_not_found", name)
            self.systems[name] = None
        totals: dict[str, Any] = {"turns": 0, "usage": Usage(), "cost_usd": 0.0, "message_count": 0}
        return SessionRecord(
            session=SessionId(name),
            id=SessionId(name),
            title=None,
            project_id=None,
            model=None,
            system_prompt=self.systems[name],
            created_at=NOON,
            updated_at=NOON,
            is_active=True,
            total_tokens=0,
            total_cost=0.0,
            **totals,
        )

    async def _of_session(self, session: str) -> list[TurnId]:
        return [turn for turn in self.order if (await self.record(turn)).session == session]

    async def _context(self, _scope: Scope, query: GetContext) -> Context:
        parent = None if query.parent is None else TurnId(query.parent)
        name = query.session or (await self.record(parent)).session if parent else query.session
        assert name is not None
        session = self.session(name, may_create=query.create_session)
        if parent is None:
            parent = next(reversed(await self._of_session(name)), None)
        branch: list[TurnRecord] = []
        at = parent
        while at is not None:
            branch.insert(0, await self.record(at))
            at = branch[0].parent
        if any(record.outcome == "running" for record in branch):
            raise Refused("session_busy", "it runs")
        return build_context(session, parent, branch)


class World:
    """The gateway's submission, one generator at a time, persistence, and the simulated Claude; all of one session."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.log = MemoryLog()
        self.history = History(self.log)
        self.claude = StandIn()
        self.calls: list[BoundCall] = []
        self.posted = 0
        self.bad: dict[TurnId, str] = {}
        """The turns with bad input, and what the API says to it."""
        self.ends: dict[TurnId, str] = {}
        """The error code of each turn that has ended with one."""
        self.happened: set[str] = set()
        """The names of the events that the session had."""
        self.running_turn = TurnId("")
        history: Any = self.history
        self._conversations = Conversations(self.log, history)
        self.counters, self.slots = MemoryCounters(), MemorySlots()
        self._records = MemoryStepRecords()
        # By the log's time.
        self._limiter = Limiter(self.counters, self.slots, self.log, BUDGETS, BUDGETS, BEGINNING.timestamp)
        self.costs = 0
        """The cost of all turns, in nano-dollars."""

    def note_bound(
        self, bind: Callable[..., BoundPrompt], call: Call, turn: Turn, mode: Mode, **options: Any
    ) -> BoundPrompt:
        """Stands for `bind_thinking`, and notes the call and the result."""
        bound = bind(call, turn, mode, **options)
        if not options:
            assert turn.request is not None
            self.calls.append(BoundCall(self.running_turn, call, turn.request, mode, bound))
        return bound

    async def post(self, sent: Sent) -> TurnKey:
        """Stores a turn as the gateway does. Raises Refused."""
        return await self.store(parse(sent))

    async def store(self, new_turn: NewTurn) -> TurnKey:
        """Like `post`, for the turn that the gateway makes of a request."""
        check_turn(new_turn)

        async def may_interrupt() -> bool:
            return True

        position = await self._conversations.find_position(Scope(TENANT, WHOLE), new_turn, may_interrupt, None)
        entry = build_entry(new_turn, position, MAX_TOKENS, OFFER, pseudonym=str, cache="auto")
        self.posted += 1
        key = TurnKey(TENANT, TurnId(f"turn-{self.posted}"))
        admission = self._limiter.admission(Principal(Scope(TENANT, WHOLE)))
        assert admission is not None
        entry = await admission.reserve_turn(key.turn, entry)
        self.history.systems.setdefault(entry.session, None)
        await self.log.append(key, START, entry)
        self.history.order.append(key.turn)
        return key

    async def steer(self, sent: Sent, steered: TurnKey) -> TurnKey:
        """Stores the turn of a message behind a running turn, and ends that one, as `POST …/steer` does."""
        request = (await self.log.read_turn(ScopedKey.whole(steered))).request
        assert request is not None
        fields = {name: getattr(request, name) for name in ("session", "model", "system", "tools", "betas")}
        body = {"messages": [{"role": "user", "content": sent.body["message"]}], "on_busy": "queue", **fields}
        key = await self.post(Sent("/v1/turns", body))
        await cancel(self.log, ScopedKey.whole(steered), "steer", None, key.turn)
        return key

    async def run(self, key: TurnKey) -> TurnRecord:
        """Runs a turn to its end, with a further generator after each one that is killed or stopped."""
        self.running_turn = key.turn
        for _ in range(60):
            running = asyncio.ensure_future(self._new_runner().run(key))
            self.running = running
            with suppress(Killed, FenceLost, asyncio.CancelledError, BaseExceptionGroup):
                await running
            turn = await self.log.read_turn(ScopedKey.whole(key))
            if turn.attempt > 1:
                self.happened.add("a further attempt")
            if turn.end is not None:
                steps = await self._limits.steps_of(key, turn)
                await Settlement(self.counters, self.slots).settle(key, turn, steps)
                self.costs += turn.end.cost_nano_usd
                break
        record = await self.history.record(key.turn)
        if record.error is not None:
            self.ends[key.turn] = record.error.code
        return record

    async def budgets(self) -> list[Budget]:
        """Returns the budgets and the slots of the key and of the tenant when no turn runs."""
        money = [
            Budget(name=name, limit=0, left=-value, recorded=self.costs)
            for name, value in self.counters.values.items()
            if ".usd_" in name
        ]
        owners = self._limiter.owners(Principal(Scope(TENANT, WHOLE)))
        held = [len(await self.slots.list_held(TENANT, owner.name, "running")) for owner in owners]
        return [*money, *(Budget(name="running", limit=0, left=-count) for count in held)]

    async def kill(self, again: int = 0) -> None:
        """The generator dies, and so do the next `again` ones after some more deltas."""
        if again:
            self.claude.at_delta = self.random.randint(1, 12), partial(self.kill, again - 1)
        raise Killed

    async def drain(self) -> None:
        """Stops the generator as SIGTERM does."""
        self.running.cancel()
        await asyncio.sleep(1)

    async def cancel(self, key: TurnKey) -> None:
        await cancel(self.log, ScopedKey.whole(key), "request")

    def _new_runner(self) -> TurnRunner:
        breakers = CircuitBreakers(ORDERS)
        limits = self._limits = CostLimits(self.counters, self._records)
        caller = ModelCaller(dict.fromkeys(ORDERS.backends, self.claude), breakers, RETRY, BlobLoader(UNUSED, UNUSED))
        return TurnRunner(
            self.log,
            caller,
            Planner(DEFAULTS.attempts_max, limits, HOOKS.obstacles, CHECKS),
            name="generator",
            filters=HOOKS.all_filters,
            sinks=HOOKS.sinks,
            limits=limits,
            prepare=(partial(prepare_queued, self.log),),
            deadline_s=FUTURE,
        )


def parse(sent: Sent) -> NewTurn:
    """Returns the turn that the gateway makes of a request."""
    body = sent.body
    match sent.path:
        case "/v1/messages":
            fields = convert(body, anthropic.MessagesRequest)
            return anthropic.build_turn(fields, body, Headers(sent.headers or {}))
        case "/v1/chat/completions":
            chat = convert(body, chat_request.ChatCompletionRequest)
            return chat_request.build_turn(chat, model_of(body), body).turn
        case "/v1/responses":
            response = convert(body, responses_request.ResponseRequest)
            return responses_request.build_turn(response, model_of(body)).turn
        case "/api/agui":
            run = convert(body, ag_ui.RunAgentInput)
            if run.resume:
                run = ag_ui.with_results(run)
            turn = ag_ui.build_turn(run, None)
            messages = ag_ui.with_context(turn.messages or [], ag_ui.context_text(run))
            return msgspec.structs.replace(turn, messages=messages)
        case "/api/chat":
            return ai_sdk.build_turn(convert(body, ai_sdk.UIChatRequest))
        case _:
            return convert(body, NewTurn)


def model_of(body: Json) -> Model:
    found = find_model(body["model"])
    assert found is not None
    return found
