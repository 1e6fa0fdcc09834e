"""A short run of stock AG-UI clients under kills; `python -m tests.kills.ag_ui` makes 200."""

from pathlib import Path

import pytest

from tests.clients.node import MODULES
from tests.kills.ag_ui import CLIENTS, Connection, measure, received_events


@pytest.mark.rule("F1")
@pytest.mark.skipif(
    not (MODULES / "@ag-ui/client").is_dir(), reason="the clients are not installed: run `make clients`"
)
@pytest.mark.timeout(240)
async def test_stock_clients_show_each_answer_once_while_generators_are_killed(tmp_path: Path) -> None:
    result = await measure(tmp_path, 6, seed=1)
    assert result.is_green, result.report()
    assert set(result.runs) == set(CLIENTS)
    assert result.hits > 3
    assert result.resumed > 0


def test_events_of_a_client_are_those_up_to_its_next_cursor() -> None:
    """A client takes a data line without the empty line behind it, and nothing of half a line."""
    first = Connection(None, 'id: 1\ndata: {"a":1}\n\nid: 2-0\ndata: {"b":2}\n')
    second = Connection("2-0", 'id: 2\ndata: {"c":3}\n\nid: 3\ndata: {"d"')
    third = Connection("2", 'id: 3\ndata: {"d":4}\n\n')
    # The last event again.
    fourth = Connection("3", 'id: 3-1000000\ndata: {"d":4}\n\n')
    events = received_events([first, second, third, fourth])
    assert [event.data for event in events] == ['{"a":1}', '{"b":2}', '{"c":3}', '{"d":4}']
    with pytest.raises(AssertionError, match="which it does not have"):
        received_events([first, Connection("9", "")])
