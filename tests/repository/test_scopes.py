"""A lost scope is an error of mypy, and few modules compare owners, ask whether users are private, or widen a scope."""

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
PACKAGES = ("deploy", "features", "gateway", "generators", "persistence", "proto", "protocols")
OWNERSHIP = "tailrace.proto.ownership"
# Each line in which a scope is lost ends with `# lost`. The others are what a route does.
ROUTE = """
from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.auth.principal import Principal
from tailrace.gateway.history_client import HistoryClient
from tailrace.gateway.streaming.feed import FanOut
from tailrace.gateway.turns.delete import Deleter
from tailrace.proto.entries import Request
from tailrace.proto.ids import BEFORE_FIRST, Seq, Tenant, TurnKey
from tailrace.proto.nats import TurnLog
from tailrace.proto.ownership import WHOLE, Scope, ScopedKey, may_use, owned_key
from tailrace.proto.records import GetTurn


async def match(key: ScopedKey, _: Request) -> ScopedKey:
    return key


async def respond(request: ApiRequest, log: TurnLog, history: HistoryClient, fan_out: FanOut, deleter: Deleter) -> None:
    scope, key = request.access, request.turn()
    await log.read_turn(key)
    await log.read_turn(key.plain)  # lost
    await log.read_turn(TurnKey(scope.tenant, key.turn))  # lost
    await log.read_turn(TurnKey(scope, key.turn))  # lost
    await log.read_turn(ScopedKey(scope.tenant, key.turn))  # lost
    await log.read_turn(ScopedKey(f"{scope}", key.turn))  # lost
    await log.read_turn_direct(key.plain)  # lost
    await log.read_remains(key.plain)  # lost
    await log.read_turn_upto(key.plain, Seq(1))  # lost
    await log.read_entries(key.plain)  # lost
    await log.has_turn(key.plain)  # lost
    await log.require_owned(key.plain)  # lost
    log.follow(key.plain)  # lost
    await log.find_turn_at(scope, Seq(1), match)
    await log.find_turn_at(scope.tenant, Seq(1), match)  # lost
    await history.query(scope, GetTurn(key.turn))
    await history.query(scope.tenant, GetTurn(key.turn))  # lost
    await history.query(f"{scope.tenant}", GetTurn(key.turn))  # lost
    await history.read_past_turn(key.plain)  # lost
    await fan_out.join(key, BEFORE_FIRST)
    await fan_out.join(key.plain, BEFORE_FIRST)  # lost
    fan_out.subscribe(key.plain, BEFORE_FIRST)  # lost
    await deleter.delete(scope.tenant, "turn", key.turn)  # lost
    owned_key(scope.tenant, "key")  # lost
    may_use(scope.tenant, None)  # lost
    may_use(scope.only_owner, None)  # lost


def build(tenant: Tenant, scope: Scope, user: str | None) -> None:
    Principal(Scope(tenant, WHOLE))
    Principal(tenant)  # lost
    Scope(tenant)  # lost
    Scope(tenant, None)  # lost
    Scope(tenant, user)  # lost
    Scope(scope, WHOLE)  # lost
    Scope(scope.tenant.strip(), WHOLE)  # lost
"""
ERROR = re.compile(r":(\d+): error: ", re.MULTILINE)


@pytest.mark.rule("R146")
@pytest.mark.timeout(600)
def test_a_lost_scope_is_an_error_of_mypy(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="make setup")
    (tmp_path / "route.py").write_text(ROUTE)
    command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", "--no-error-summary", "--no-pretty"]
    found = subprocess.run([*command, tmp_path / "route.py"], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    lost = {number for number, line in enumerate(ROUTE.splitlines(), 1) if line.endswith("# lost")}
    assert {int(number) for number in ERROR.findall(found.stdout)} == lost, found.stdout + found.stderr


def compares_owners(tree: ast.Module) -> bool:
    return _imports(tree, "may_use")


def asks_whether_users_are_private(tree: ast.Module) -> bool:
    return any(_attributes(tree, "is_whole_tenant"))


def filters_by_owner(tree: ast.Module) -> bool:
    return any(_attributes(tree, "only_owner"))


def sees_the_whole_tenant(tree: ast.Module) -> bool:
    whole = (node for node in _attributes(tree, "whole") if ast.unparse(node.value) == "ScopedKey")
    return _imports(tree, "WHOLE") or any(whole)


def _imports(tree: ast.Module, name: str) -> bool:
    imports = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == OWNERSHIP)
    return any(one.name == name for node in imports for one in node.names)


def _attributes(tree: ast.Module, name: str) -> Iterator[ast.Attribute]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == name)


@pytest.mark.rule("R146")
@pytest.mark.parametrize(
    ("does", "expected", "advice"),
    [
        (
            compares_owners,
            """features/files/persistence.py gateway/streaming/feed.py persistence/store.py proto/nats/turn_log.py""",
            "pass the scope to a query, a read of the log or the fan-out, which compare the owner",
        ),
        (
            asks_whether_users_are_private,
            """
            features/client_calls/gateway.py features/erasure/gateway.py features/limits/limiter.py
            features/limits/rests.py features/projects/persistence.py features/steer/steering.py
            gateway/clients/blobs.py gateway/streaming/feed.py gateway/turns/conversation.py gateway/turns/delete.py
            gateway/turns/draft.py persistence/commands.py persistence/queries.py proto/nats/turn_log.py
            """,
            "say in docs/AUTH.md what a private user gets there, and add the module here",
        ),
        (
            filters_by_owner,
            """
            features/batches/persistence.py features/client_calls/persistence.py features/files/persistence.py
            features/usage/persistence.py gateway/turns/conversation.py persistence/queries.py
            """,
            "show that the list has no thing of another user, and add the module here",
        ),
        (
            sees_the_whole_tenant,
            """
            deploy/cli/turn.py deploy/cli/verify.py features/batches/deletion.py features/batches/message_batches.py
            features/batches/runner.py features/client_calls/continuations.py features/common/line.py
            features/departures/gateway.py features/jwt/verifier.py features/limits/soft_limits.py
            features/queued_turns/generator.py features/tickets/tickets.py
            features/unstored/unstored_turns.py features/usage/gateway.py features/webhooks/sender.py
            gateway/auth/api_keys.py gateway/auth/authenticate.py gateway/auth/static_keys.py gateway/history_client.py
            gateway/streaming/feed.py gateway/streaming/response.py
            gateway/turns/delete.py gateway/turns/reader_presence.py gateway/turns/request_body.py
            generators/attempt_runner.py generators/peer_watch.py generators/rpc.py generators/turn_runner.py
            generators/worker.py
            persistence/commands.py persistence/queries.py persistence/recorder.py
            """,
            "a request has a scope, `request.access`: pass it on. If no user asks for the work, add the module here",
        ),
    ],
)
def test_only_these_modules_decide_about_scopes(does: Callable[[ast.Module], bool], expected: str, advice: str) -> None:
    """The modules that compare owners, have a policy about private users, or read for no user (ADR 41)."""
    modules = (path for package in PACKAGES for path in (CHECKOUT / package).rglob("*.py"))
    found = {str(path.relative_to(CHECKOUT)) for path in modules if does(ast.parse(path.read_text()))}
    added, gone = found - {"proto/ownership.py", *expected.split()}, set(expected.split()) - found
    assert not added, f"{', '.join(sorted(added))} {does.__name__.replace('_', ' ')}: {advice}"
    assert not gone, f"remove from the list: {', '.join(sorted(gone))}"
