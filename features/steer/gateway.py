"""`POST /v1/turns/{turn}/steer`: puts a message into an answer that runs."""

from typing import Any

import msgspec
from starlette.responses import Response

from tailrace.features.steer.endings import Endings
from tailrace.features.steer.service import At, SteerService, steered_turn
from tailrace.features.steer.steering import make_steering
from tailrace.features.steer.successions import Successions
from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.feature import Feature, Parts
from tailrace.gateway.http.json_response import json_response
from tailrace.gateway.http.parameters import KEY
from tailrace.gateway.http.route import TURNS, Route
from tailrace.gateway.services import Gateway
from tailrace.gateway.turns.draft import draft_turn
from tailrace.gateway.turns.request_body import MessageParam, NewTurn
from tailrace.proto.ids import SessionId, TurnId
from tailrace.proto.runtime.settings import NoSettings


class Steer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /v1/turns/{turn}/steer`."""

    message: str | list[dict[str, Any]]
    """The text of the message, or content blocks in Anthropic's format."""
    at: At = "now"
    """`now` ends the running answer; `boundary` waits for the end of its content block, at most for its own end."""


class SteeredTurn(msgspec.Struct, frozen=True, kw_only=True):
    """The turn that answers the message, stored in the log, and the paths for reading and cancelling it."""

    turn: TurnId
    """The id of the new turn."""
    session: SessionId
    """The session of the turn."""
    steered: TurnId | None
    """The turn that was running, which the new one follows. Null: it had ended."""
    links: dict[str, str]
    """Paths by name: the turn, its events, and its cancellation."""


async def post_steer(request: ApiRequest, service: SteerService) -> Response:
    """`POST /v1/turns/{turn}/steer`: puts a message into an answer that runs. Answers 202 with the turn of the message.

    The turn is stored before the running one ends, so an accepted message is answered once. The text so far stays in
    the conversation. If the turn has ended, the message is the next turn of its session.
    """
    key = request.turn()
    body, raw = await request.read(Steer, has_model_output=True)
    new_turn = NewTurn(messages=[MessageParam("user", body.message)])
    stored = await service.steer(draft_turn(request, new_turn, raw), key, body.at)
    path = f"/v1/turns/{stored.key.turn}"
    return json_response(
        SteeredTurn(
            turn=stored.key.turn,
            session=stored.entry.session,
            steered=steered_turn(stored),
            links={"self": path, "events": f"{path}/events", "cancel": f"{path}/cancel"},
        ),
        status=202,
        headers={"location": path, "tailrace-turn": stored.key.turn},
    )


ROUTES = [
    Route(
        "POST",
        "/v1/turns/{turn}/steer",
        post_steer,
        "write",
        TURNS,
        body=Steer,
        result=SteeredTurn,
        status=202,
        parameters=(KEY,),
    )
]


def start(gateway: Gateway, _settings: NoSettings) -> Parts:
    """Makes the service that steers, and the hook by which readers go on in the next turn."""
    endings = Endings()
    return Parts(
        services=(SteerService(make_steering(gateway, endings).steer),),
        background=(endings.run,),
        go_on=Successions(gateway.log).go_on,
    )


FEATURE = Feature(NoSettings, start, routes=ROUTES)
