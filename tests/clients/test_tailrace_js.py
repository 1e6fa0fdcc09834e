"""web/tailrace.js, besides what the client matrix tests."""

import gzip
import shutil
import tarfile
from pathlib import Path
from typing import Any

import msgspec

from tests.clients import node
from tests.clients.conftest import read_stored_text
from tests.harness.generator_in_loop import words
from tests.harness.processes import CHECKOUT
from tests.integration.conftest import KEY, Gateway


async def test_to_stop_reading_does_not_cancel_and_refusals_are_errors_with_a_code(gateway: Gateway) -> None:
    (seen,) = await node.run("tailrace.mjs", gateway.url, KEY)
    assert seen == {
        "uploaded": ["completed", 1],
        "isMadeOnce": True,
        "page": ["TailraceError", 200, None],
        "throughProxy": "completed",
        "stopped": ["AbortError", None, None],
        "isRunning": "running",
        "cancelled": "cancelled",
        "end": "cancelled",
        "isWhole": True,
        "nothing": ["cancelled", True, True],
        "followed": [["session", "start", "delta", "done"], True, "ended"],
        "followedAgain": ["TypeError", None, None],
        "followedNothing": ["TailraceError", 404, "session_not_found"],
        "aborted": ["AbortError", None, None],
        "refused": ["TailraceError", 400, "request_invalid"],
        "unknown": ["TailraceError", 404, "turn_not_found"],
        "tokenLost": "completed",
        "tokenRefused": ["RangeError", None, None],
        "isError": True,
    }


async def test_a_decision_about_a_tool_call_is_one_line(gateway: Gateway) -> None:
    assert await node.run("decide.mjs", gateway.url, KEY) == [{"outcome": "completed", "isSame": True}]


def test_the_module_has_less_than_6_kb_compressed() -> None:
    assert len(gzip.compress((CHECKOUT / "web/tailrace.js").read_bytes())) < 6000


async def test_the_packed_package_reads_through_a_proxy_route_in_node_and_on_an_edge_runtime(
    gateway: Gateway, tmp_path: Path
) -> None:
    """The package of `npm pack`. Only the route knows the key, and it serves the users that the app accepts.

    In Node it also waits as the gateway asks, and renders the hooks on a server. TypeScript finds its types, and those
    of a copy of ai-sdk.js with the options of a Next.js app.
    """
    packing = [str(node.NODE), str(node.NPM), "pack", "--json", "--pack-destination", str(tmp_path)]
    found = await node.command(packing, {"HOME": tmp_path}, CHECKOUT / "web")
    [package] = msgspec.json.decode(found)
    files = {
        "ai-sdk.js",
        "fetch.d.ts",
        "fetch.js",
        "outbox.js",
        "package.json",
        "react.d.ts",
        "react.js",
        "session.d.ts",
        "session.js",
        "tailrace.d.ts",
        "tailrace.js",
    }
    assert {one["path"] for one in package["files"]} == files
    modules = tmp_path / "node_modules"
    with tarfile.open(tmp_path / package["filename"]) as archive:
        archive.extractall(modules, filter="data")
    (modules / "package").rename(modules / "tailrace")
    apps = ("react", "react-dom", "scheduler", "ai", "@ai-sdk")
    for name in (*apps, "@edge-runtime", "esbuild", "@esbuild", "@types", "csstype"):
        (modules / name).symlink_to(node.MODULES / name)
    example = CHECKOUT / "examples/edge_proxy.js"

    async def run(name: str, example: str) -> dict[str, Any]:
        script = shutil.copy(node.SCRIPTS / name, tmp_path)
        printed = await node.command([str(node.NODE), str(script), gateway.url, KEY, example], {}, tmp_path)
        seen: dict[str, Any] = msgspec.json.decode(printed)
        return seen

    shutil.copy(node.SCRIPTS / "cut-once.mjs", tmp_path)
    shutil.copy(CHECKOUT / "web/ai-sdk.js", tmp_path)
    compiler = str(node.MODULES / "typescript/bin/tsc")
    options = ("--noEmit", "--strict", "--jsx", "react-jsx", "--module", "nodenext", "--target", "es2023")
    for name, more in (("types.tsx", ()), ("chat-types.tsx", ("--allowJs", "--skipLibCheck"))):
        program = shutil.copy(node.SCRIPTS / name, tmp_path)
        await node.command([str(node.NODE), compiler, *options, *more, str(program)], {}, tmp_path)
    on_edge = await run("edge.mjs", str(example))
    assert on_edge["text"] == words(60) == await read_stored_text(gateway, on_edge["turn"])
    assert (on_edge["resumed"], on_edge["node"]) == ([2, True], ["undefined"] * 2)
    seen = await run("packed.mjs", example.as_uri())
    assert seen["text"] == words(60) == await read_stored_text(gateway, seen.pop("turn"))
    assert seen == {
        "text": words(60),
        "resumed": [None, True],
        "refused": [True, 404],
        "listed": 404,
        "beyond": 404,
        "steered": words(3),
        "ended": ["s" * 36, "completed"],
        "waited": words(60),
        "hasWaited": True,
        "tooLong": [503, 31],
        "rendered": "idle idle idle",
    }
