"""What a stranger sends forges no line of a log, and makes no series of a metric."""

import asyncio
import os
import random
import re
import subprocess
import sys

import prometheus_client
import pytest

from tailrace.proto.errors import CODES
from tests.harness.processes import CHECKOUT
from tests.integration.conftest import Gateway, NewGateway

# `make fuzz` asks ten times as often.
STRANGERS = int(os.environ.get("FUZZ_STRANGERS", "1000"))
AT_ONCE = 30
FORGED = "forged-by-a-stranger"
INJECTED = f'x\r\n{{"event": "{FORGED}"}}\n2026-11-20 [error] {FORGED}\x1b[2J\x1b[31m\u2028\u0085{FORGED}\x00'
# What a terminal, or who reads line by line, takes for more than text.
CONTROL = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]")


def series() -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    """Each that this process tells, with its labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items())))
        for metric in prometheus_client.REGISTRY.collect()
        for sample in metric.samples
        if sample.name.startswith("tailrace_")
    }


async def ask(gateway: Gateway, draw: random.Random) -> None:
    """One request that names everything at random: a path, a turn, a tenant, a model, a method."""
    name = f"{draw.getrandbits(64):x}"
    headers = {"x-tenant": name, "last-event-id": name, "user-agent": name}
    method, path, body = draw.choice(
        [
            ("GET", f"/{name}", None),
            ("GET", f"/v1/turns/{name}", None),
            ("GET", f"/v1/turns/{name}/events?dialect={name}", None),
            ("POST", "/v1/turns", {"message": "x", "model": name, "tenant": name}),
            ("POST", "/v1/chat/completions", {"model": name, "messages": name}),
            (f"M{name}", "/v1/turns", None),
        ]
    )
    if draw.random() < 0.3:
        headers["authorization"] = f"Bearer {name}"
    await gateway.client.request(method, path, json=body, headers=headers)


@pytest.mark.rule("S11")
async def test_no_name_that_a_stranger_makes_up_is_a_series(nats_url: str, new_gateway: NewGateway) -> None:
    """Or a metrics store is filled by who asks often enough: codes are as many as there are in the table."""
    gateway = await new_gateway(nats_url)
    await asyncio.gather(*(ask(gateway, random.Random(number)) for number in range(AT_ONCE)))
    before = series()
    for first in range(AT_ONCE, STRANGERS, AT_ONCE):
        await asyncio.gather(*(ask(gateway, random.Random(number)) for number in range(first, first + AT_ONCE)))
    assert series() - before == set()
    codes = {dict(labels).get("code") for name, labels in before if name == "tailrace_gateway_refused_total"}
    assert codes <= CODES.keys()
    assert len(codes) >= 3


@pytest.mark.rule("S12")
@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.parametrize(
    "told",
    [
        "structlog.get_logger().info('turn accepted', model=said)",
        "structlog.get_logger().info(said)",
        "logging.getLogger('uvicorn').warning('%s is no header', said)",
    ],
)
def test_nothing_that_is_told_forges_a_line_of_the_log(form: str, told: str) -> None:
    """Line breaks and a terminal's commands, in what we log and in what a library below us does: one line a fact."""
    script = (
        "import logging, structlog\nfrom tailrace.proto.runtime.logging_setup import configure\n"
        f"configure('gateway', {form!r}, 'debug')\n"
    )
    said = f"said = {INJECTED!r}\n"
    done = subprocess.run([sys.executable, "-c", script + said + told], cwd=CHECKOUT, capture_output=True, check=True)
    printed = done.stderr.decode()
    assert FORGED in printed
    assert CONTROL.findall(printed.removesuffix("\n")) == []
