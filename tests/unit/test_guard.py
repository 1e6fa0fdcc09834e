"""Authorization of routes by scope and by the turn of a ticket."""

from typing import Any, cast

import httpx2
import pytest
from starlette import routing
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse

from tailrace.gateway.auth.api_keys import ApiKeyCache
from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.auth.authenticate import Authenticator, CredentialSource
from tailrace.gateway.auth.guard import GuardedEndpoint
from tailrace.gateway.auth.principal import Principal
from tailrace.gateway.http import error_responses
from tailrace.gateway.http.route import TURNS, Need, Route, query
from tailrace.gateway.settings import Settings
from tailrace.proto.errors import Refused
from tailrace.proto.ids import Tenant, TurnId
from tailrace.proto.ownership import WHOLE, Scope
from tests.unit.test_auth import AcceptingVerifier


async def answer(request: ApiRequest) -> PlainTextResponse:
    return PlainTextResponse(request.access.tenant)


def build(caller: Principal | None) -> Authenticator:
    """Open, or one that lets `caller` in for anything that is sent as `?ticket=`."""
    made = Authenticator(Settings(api_keys="" if caller is None else f"alice:{'0' * 64}"), ApiKeyCache())
    if caller is not None:
        made.sources.append(
            CredentialSource(
                lambda request: [b"x"] if "ticket" in request.query_params else [], [AcceptingVerifier(caller)]
            )
        )
    return made


async def status(path: str, url: str, caller: Principal | None, method: str = "GET", need: Need = "read") -> int:
    row = Route("GET", path, answer, need, TURNS, parameters=(query("ticket", "A ticket."),))
    guarded = GuardedEndpoint(row, answer, build(caller), cast("Any", None))
    app = Starlette(
        routes=[routing.Route(path, guarded, methods=["GET"])],
        exception_handlers={Refused: error_responses.handle_refusal},
    )
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://localhost") as client:
        return (await client.request(method, url, headers={"content-type": "application/json"})).status_code


def test_a_route_without_a_scope_cannot_be_written() -> None:
    with pytest.raises(TypeError, match="need"):
        Route("GET", "/v1/forgotten", answer)  # type: ignore[call-arg]


@pytest.mark.parametrize("caller", [None, Principal(Scope(Tenant("alice"), WHOLE), "key_1")])
async def test_a_principal_without_the_scope_of_the_route_is_refused(caller: Principal | None) -> None:
    assert await status("/v1/turns/{turn}", "/v1/turns/a?ticket=x", caller, need="admin") == 403
    assert await status("/v1/turns/{turn}", "/v1/turns/a?ticket=x", caller, "HEAD") == 200


@pytest.mark.parametrize(
    ("path", "url", "expected"),
    [
        ("/v1/turns/{turn}/events", "/v1/turns/mine/events", 200),
        ("/v1/turns/{turn}/events", "/v1/turns/other/events", 404),
        ("/v1/turns/{turn}", "/v1/turns/other", 404),
        ("/v1/sessions", "/v1/sessions", 404),
        ("/v1/responses/{response_id}", "/v1/responses/mine", 404),
        ("/api/stream/{job_id}", "/api/stream/mine", 404),
        ("/v1/models/{model}", "/v1/models/mine", 404),
    ],
)
async def test_a_principal_of_one_turn_can_read_only_that_turn(path: str, url: str, expected: int) -> None:
    """The path parameter `turn` alone names a turn."""
    caller = Principal(Scope(Tenant("alice"), WHOLE), "key_1", turn=TurnId("mine"))
    assert await status(path, f"{url}?ticket=x", caller) == expected


async def test_a_public_route_has_no_principal() -> None:
    assert await status("/healthz", "/healthz", None, need="public") == 401
