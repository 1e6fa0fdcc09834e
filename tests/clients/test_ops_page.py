"""The page `/ops` in Chromium, light on a desktop and dark on a phone. On a loaded system: test_dashboards.py."""

from pathlib import Path

from tailrace.features.ops.panels import DASHBOARDS
from tests.clients import node
from tests.harness import jwts
from tests.harness.system import System
from tests.integration.conftest import NewGateway


async def test_the_page_asks_for_a_key_and_draws_all_panels(
    system: System, new_gateway: NewGateway, browser: str, tmp_path: Path
) -> None:
    """It obeys its Content-Security-Policy, loads nothing from elsewhere, and fits the window."""
    gateway = await new_gateway(system.nats_url, **jwts.settings(jwt_scopes_claim="scope"))
    operator = jwts.token(scope="operate").decode()
    pages = await node.run("ops.mjs", gateway.url, tmp_path, operator, CHROMIUM=browser)
    assert [(page["colorScheme"], page["size"]) for page in pages] == [("light", "desktop"), ("dark", "phone")]
    for page in pages:
        assert (page["complaints"], page["elsewhere"], page["isWide"]) == ([], [], False)
        assert page["login"] == ["refused", 401, 200]
        assert page["links"] == ["/", "/guides", "/docs", "/ops", "/admin"]
        # A chart without values takes little space, behind those with values.
        assert 0 < page["tallest"] < 60
        assert page["areEmptyLast"]
        assert list(page["panels"]) == [panel.title for one in DASHBOARDS for panel in one.panels]
        assert page["away"].startswith("The gateway returns no values (Failed to fetch).")
        # A gateway of another version may have other panels.
        assert page["upgraded"] == DASHBOARDS[0].panels[-1].title
        # The window of these panels begins before the gateway's first sample.
        windows = [panel.title for one in DASHBOARDS for panel in one.panels if panel.window_s]
        assert page["counted"] == windows
        assert "Cost of the last day" in windows
        assert (page["panels"]["Log takes entries"], page["panels"]["Takeover"]) == ("yes", "\N{EN DASH}")
        assert [notice.partition(".")[0] for notice in page["notices"]] == ["Only this gateway's own metrics are shown"]
    assert len({page["background"] for page in pages}) == 2
