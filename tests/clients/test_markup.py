"""Markup from models and clients is shown as text at every URL, and loads nothing."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from tailrace.features.gateway import DIALECTS
from tests.clients import node
from tests.harness.route_table import ROWS, path_parameters
from tests.integration.conftest import Gateway

SECURITY_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none';"
    " form-action 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
RUN = "console.log('ran')"


@pytest.fixture
async def other_server() -> AsyncIterator[tuple[str, list[bytes]]]:
    """The URL of another server, and the requests that it received."""
    requests: list[bytes] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readline())
        writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", requests


def markup(elsewhere: str) -> str:
    """Markup that runs or loads something in a page that interprets it as HTML or Markdown."""
    return " ".join(
        (
            f"<script>{RUN}</script>",
            f"<img src='{elsewhere}/img' onerror=\"{RUN}\">",
            f"<svg onload=\"{RUN}\"><iframe src='{elsewhere}/frame'></iframe></svg>",
            f'<a href="javascript:{RUN}" autofocus onfocus="{RUN}">link</a>',
            f"<script src='{elsewhere}/script'></script><link rel=stylesheet href='{elsewhere}/style'>",
            f"![picture]({elsewhere}/markdown?secret=1) [link](javascript:{RUN})",
        )
    )


@pytest.mark.rule("S8")
async def test_markup_is_shown_as_text(
    open_gateway: Gateway, browser: str, other_server: tuple[str, list[bytes]]
) -> None:
    """FAULTS S8: every route and dialect, with errors, opened as a link. The first page interprets it, which is
    detected.
    """
    elsewhere, requests = other_server
    text = markup(elsewhere)
    turn, session, project = await write_markup(open_gateway, text)
    names = path_parameters(turn, session, project)
    shown_routes = [(path, row) for (method, path), row in ROWS.items() if method == "GET" and not row.is_endless]
    paths = [path.format(**names) + row.query for path, row in shown_routes]
    paths += [f"/v1/turns/{turn}/events?dialect={dialect}" for dialect in DIALECTS]
    paths += [f"/v1/turns/{text}", f"/v1/turns/{turn}/events?dialect={text}", f"/{text}"]
    obeyed, *shown = await node.run("navigate.mjs", open_gateway.url, text, *paths, CHROMIUM=browser)
    assert obeyed["ran"] >= 3
    assert obeyed["elsewhere"] >= 3
    assert len(requests) >= 3
    assert [one for one in shown if one["ran"] or one["elsewhere"]] == []
    pages = [one for one in shown if one["headers"] is not None]
    # The script of /ops makes no markup of values; that of / shows titles, and makes markup of sanitised Markdown only.
    assert {one["path"] for one in pages if one["links"]} == {
        "/",
        "/admin",
        "/docs",
        "/guides",
        "/guides/API",
        "/ops",
        f"/turns/{turn}",
    }
    policies = {one["path"]: one["headers"]["content-security-policy"] for one in pages}
    own = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob:; "
    nowhere = "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    trusted = "require-trusted-types-for 'script'; trusted-types dompurify; "
    of_pages = {
        "/": own + trusted + nowhere,
        "/admin": own + trusted.replace("dompurify", "'none'") + nowhere,
        "/ops": own + nowhere,
        f"/turns/{turn}": own + trusted + nowhere,
        "/docs": SECURITY_HEADERS["content-security-policy"] + "; img-src 'self'",
    }
    # Their form sends a search to this server.
    searched = of_pages["/docs"].replace("form-action 'none'", "form-action 'self'")
    of_pages |= {"/guides": searched, "/guides/API": searched}
    assert {
        path: policy for path, policy in policies.items() if policy != SECURITY_HEADERS["content-security-policy"]
    } == of_pages
    others = {name: value for name, value in SECURITY_HEADERS.items() if name != "content-security-policy"}
    assert [one["path"] for one in pages if not others.items() <= one["headers"].items()] == []
    assert {one["headers"]["content-type"] for one in pages if "html" in one["headers"].get("content-type", "")} == {
        "text/html; charset=utf-8"
    }


async def write_markup(gateway: Gateway, text: str) -> tuple[str, str, str]:
    """Writes a turn, a session and a project with the markup in every field."""
    project = (await gateway.client.post("/v1/projects", json={"name": text[:100], "description": text})).json()["id"]
    made = {"title": text, "system_prompt": text, "project_id": project}
    session = (await gateway.client.post("/v1/sessions", json=made)).json()["id"]
    answer = msgspec.json.encode({"a": text}).decode()
    body: dict[str, Any] = {
        "message": f"{text}\n#sim json={answer}",
        "session": session,
        "metadata": {"note": text},
        "schema": {"type": "object"},
    }
    turn = (await gateway.client.post("/v1/turns", json=body)).json()
    stream = await gateway.client.get(f"{turn['links']['events']}?dialect=text")
    assert msgspec.json.decode(stream.content) == {"a": text}
    return turn["turn"], session, project
