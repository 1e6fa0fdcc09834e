"""A real Prometheus with the rules of deploy/monitoring, for which a minute of a rule is at most a second."""

import math
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Self

import httpx2
import msgspec
import pytest

from tailrace.deploy.local import ports
from tailrace.deploy.local.spawn import spawn
from tests.harness.processes import CHECKOUT
from tests.harness.until import until

needs_prometheus = pytest.mark.skipif(shutil.which("prometheus") is None, reason="no prometheus: `make clients`")
RULES = CHECKOUT / "deploy/monitoring/rules.yml"
WINDOW_S = {"m": 1, "h": 20, "d": 480}
"""How many seconds a minute, an hour and a day of a rule's window last here."""
START_S_MAX = 20.0

Series = tuple[str, ...]
"""The values of a series' labels, in the order of the labels' names."""


def shorten_windows(rules: str) -> str:
    """Returns rules whose windows and waits are at least 60 times shorter. A window has at least five scrapes."""
    rules = re.sub(r"\[(\d+)([mhd])\]", lambda found: f"[{int(found[1]) * WINDOW_S[found[2]]}s]", rules)
    return re.sub(r'for: "(\d+)([smh])"', lambda found: f'for: "{hold_s(int(found[1]), found[2])}s"', rules)


def hold_s(count: int, unit: str) -> int:
    """Returns the seconds for which an alert is held back here: at most 5 s for minutes, 4 s for an hour."""
    return {"s": 0, "m": min(count, 5), "h": 4 * count}[unit]


class Prometheus:
    """Scrapes the targets once a second: the metrics ports of each part, such as `gateway`.

    With `discovery`, the targets are those that this URL returns, as in deploy/monitoring/prometheus.yml. `as_shipped`:
    with the intervals of that file, and the windows and waits of the rules.
    """

    def __init__(
        self,
        folder: Path,
        targets: Mapping[str, Sequence[int]],
        discovery: str = "",
        *,
        as_shipped: bool = False,
    ) -> None:
        self.as_shipped = as_shipped
        self._folder = folder / "prometheus"
        self._discovery = discovery
        self.targets = targets

    async def __aenter__(self) -> Self:
        self._folder.mkdir()
        rules, every_s, timeout_s = (
            (RULES.read_text(), 15, 10) if self.as_shipped else (shorten_windows(RULES.read_text()), 1, 1)
        )
        (self._folder / "rules.yml").write_text(rules)
        scraped = [
            {"targets": [f"127.0.0.1:{port}" for port in found], "labels": {"part": part}}
            for part, found in self.targets.items()
        ]
        job: dict[str, object] = {"job_name": "tailrace", "static_configs": scraped}
        if self._discovery:
            job["http_sd_configs"] = [{"url": self._discovery, "refresh_interval": "1s"}]
        config = {
            "global": {
                "scrape_interval": f"{every_s}s",
                "scrape_timeout": f"{timeout_s}s",
                "evaluation_interval": f"{every_s}s",
            },
            "rule_files": ["rules.yml"],
            "scrape_configs": [job],
        }
        (self._folder / "prometheus.yml").write_bytes(msgspec.json.encode(config))
        (port,) = ports.find_free(1)
        command = [
            "prometheus",
            f"--config.file={self._folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        self.url = f"http://127.0.0.1:{port}"
        async with AsyncExitStack() as stack:
            printed = stack.enter_context((self._folder / "printed.txt").open("wb"))
            process = await spawn(command, {}, printed.fileno())
            stack.push_async_callback(process.wait)
            stack.callback(process.kill)
            self._client = await stack.enter_async_context(httpx2.AsyncClient(base_url=self.url, trust_env=False))
            await until(self._is_ready, START_S_MAX)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def query(self, expr: str) -> dict[Series, float]:
        """Returns the present value of each series; without those that are not numbers, as a quantile of nothing is."""
        answer = await self._client.get("/api/v1/query", params={"query": expr})
        assert answer.is_success, f"{expr}: {answer.text}"
        found = {
            tuple(value for _, value in sorted(row["metric"].items())): float(row["value"][1])
            for row in answer.json()["data"]["result"]
        }
        return {series: value for series, value in found.items() if not math.isnan(value)}

    async def firing(self) -> set[str]:
        """Returns the names of the alerts that fire."""
        found = await self.query('count by (alertname, severity) (ALERTS{alertstate="firing"})')
        return {" ".join(series) for series in found}

    async def texts(self) -> dict[str, str]:
        """Returns what a person reads in each alert that fires: summary, action, section of the runbook."""
        found = (await self._client.get("/api/v1/alerts")).json()["data"]["alerts"]
        firing = [one for one in found if one["state"] == "firing"]
        return {
            one["labels"]["alertname"]: " | ".join(
                one["annotations"][name] for name in ("summary", "description", "runbook_url")
            )
            for one in firing
        }

    async def _is_ready(self) -> bool:
        try:
            return (await self._client.get("/-/ready")).is_success
        except httpx2.TransportError:
            return False
