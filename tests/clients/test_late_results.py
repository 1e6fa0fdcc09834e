"""Stock clients get the result of a server tool that the model has called beside a tool of the page."""

import json
from typing import Any

from tailrace.proto.ids import new_id
from tests.clients import node
from tests.integration.conftest import KEY, Gateway
from tests.protocols.test_views import FOUND, LOOK, SEARCH, TEXT
from tests.protocols.test_views_end_to_end import case_of


async def test_stock_clients_get_the_result_in_the_next_answer(gateway: Gateway, claude: str) -> None:
    """The clients of AG-UI have it as a result of that call. No client waits for it before it sends its own."""
    first, second = case_of("tool_use", SEARCH, LOOK), case_of("end_turn", FOUND, TEXT)
    address = f"{claude}/_sim/cases/{new_id()}"
    seen = await node.run("late-results.mjs", gateway.url, KEY, address, first.decode(), second.decode())
    assert [one["reported"] for one in seen] == [[]] * 6

    def value(result: Any) -> Any:
        return json.loads(result) if isinstance(result, str) and result.startswith("[") else result

    for one in seen:
        results = {name: [value(result) for result in found] for name, *found in one["results"]}
        assert results == {"web_search": [FOUND["content"]], "look": ["blue"]}, one["client"]
