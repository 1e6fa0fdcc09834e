"""Route that returns the timeline of a turn: its attempts, pauses, readers and cost."""

from functools import partial

from starlette.responses import Response

from tailrace.features.timeline import timeline
from tailrace.features.timeline.timeline import Timeline
from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.feature import Feature, Parts
from tailrace.gateway.history_client import HistoryClient
from tailrace.gateway.http.json_response import json_response
from tailrace.gateway.http.route import TURNS, Route
from tailrace.proto.errors import TurnUnknown, not_found
from tailrace.proto.nats import Rpc, TurnLog
from tailrace.proto.runtime.settings import NoSettings

# Gateways answer from memory.
GATEWAYS_WAIT_S = 0.2


async def get_timeline(request: ApiRequest, log: TurnLog, history: HistoryClient, rpc: Rpc) -> Response:
    """`GET /v1/turns/{turn}/timeline`: when each entry of the turn was stored, its attempts, pauses and readers.

    For finding out why an answer was slow, or whether a reader received all of it.
    """
    key = request.turn()
    ask_gateways = partial(rpc.collect_readers, key.plain, wait_s=GATEWAYS_WAIT_S)
    try:
        return json_response(await timeline.read(log, history, key, ask_gateways))
    except TurnUnknown as unknown:
        raise not_found("turn") from unknown


ROUTES = [
    Route("GET", "/v1/turns/{turn}/timeline", get_timeline, "read", TURNS, result=Timeline),
]


FEATURE = Feature(NoSettings, lambda _gateway, _settings: Parts(), routes=ROUTES)
