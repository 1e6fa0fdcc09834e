"""The JavaScript and TypeScript in README.md and docs/: programs run in Node, and TypeScript checks fragments."""

import re
import shutil
from pathlib import Path

from tests.clients import node
from tests.harness.cutting_proxy import Cut, Cutting
from tests.harness.processes import CHECKOUT
from tests.integration.conftest import Gateway
from tests.integration.test_docs import QUESTION, text_of

PAGES = (CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").glob("*.md")))
BLOCK = re.compile(r"^```(?:js|jsx|ts|tsx)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = [(page.name, code) for page in PAGES for code in BLOCK.findall(page.read_text())]
BLOCKS += [("OPENAI.md", (CHECKOUT / "examples/openai_websocket.mjs").read_text())]
# A program prints its answer, and a fragment does not.
PROGRAMS = [(page, code) for page, code in BLOCKS if "process.stdout.write" in code or "console.log" in code]
FRAGMENTS = [block for block in BLOCKS if block not in PROGRAMS]
GATEWAY = re.compile(r"http://(localhost|127\.0\.0\.1):8000")
QUESTIONS = re.compile(r'"(Why is the sky blue\?|What is a tailrace\?)"')
# The names that fragments use: those of the modules in web/, and those of the reader's app.
GLOBALS = """
declare const ask: typeof import("./tailrace.js").ask;
declare const resume: typeof import("./tailrace.js").resume;
declare const follow: typeof import("./tailrace.js").follow;
declare const request: typeof import("./tailrace.js").request;
declare const useTurn: typeof import("./react.js").useTurn;
declare const useState: typeof import("react").useState;
declare const useChat: typeof import("@ai-sdk/react").useChat;
declare const chat: ReturnType<typeof useChat>;
declare const TailraceChatTransport: typeof import("./ai-sdk.js").TailraceChatTransport;
declare const [paragraph, mark, answer]: HTMLElement[];
declare const [question, key, turn, chatId, threadId]: string[];
declare const [agent, copilotkit]: any[];
declare const [show, showOlder, mayUse, isOwn, userOf, token, setError]: ((...given: unknown[]) => any)[];
// In a service worker.
declare function addEventListener(type: "fetch", listener: (event: FetchEvent) => void): void;
interface FetchEvent { request: Request; respondWith(response: Promise<Response>): void }
// The types of react-markdown 8, which stands in for `streamdown`, are older than React 19.
declare namespace JSX { interface IntrinsicElements extends import("react").JSX.IntrinsicElements {} }
declare const [initial, isEnded, supabase, path, method, body, headers]: any[];
"""


def as_module(code: str) -> str:
    """Returns a block as a module. A block may be the inside of an object or of a function."""
    code = code.replace("../../../../edge_proxy.js", "./edge_proxy.js")
    code = re.sub(r'from "tailrace(?:/(react|session))?"', lambda found: f'from "./{found[1] or "tailrace"}.js"', code)
    if re.match(r"\w+: ", code):
        code = f"({{{code}}});\n"
    if re.search(r"^return ", code, re.MULTILINE):
        code = f"async () => {{\n{code}}};\n"
    return f"{code}export {{}};\n"


def folder_of_an_app(tmp_path: Path) -> Path:
    """Returns a folder with the modules that users copy, and the packages of the tests."""
    for module in (
        "tailrace.js",
        "tailrace.d.ts",
        "react.js",
        "react.d.ts",
        "session.js",
        "session.d.ts",
        "outbox.js",
        "fetch.js",
        "fetch.d.ts",
        "ai-sdk.js",
    ):
        shutil.copy(CHECKOUT / "web" / module, tmp_path)
    shutil.copy(CHECKOUT / "examples/edge_proxy.js", tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "node_modules").symlink_to(node.MODULES)
    return tmp_path


async def test_each_program_prints_the_whole_answer(open_gateway: Gateway, tmp_path: Path) -> None:
    """Those with `resumableFetch` also over cuts."""
    folder, answer = folder_of_an_app(tmp_path), await text_of(open_gateway)
    # The programs of other pages are files in examples/, which have their own tests.
    assert len(PROGRAMS) == 5
    healed = 0
    for page, code in PROGRAMS:
        is_healed = "resumableFetch(" in code
        healed += is_healed
        async with Cutting(open_gateway.port, [Cut(1500), Cut(2500, "fin")] if is_healed else []) as proxy:
            program = QUESTIONS.sub(f'"{QUESTION}"', GATEWAY.sub(proxy.url, code))
            assert QUESTION in program, page
            (folder / "program.js").write_text(program)
            printed = await node.command([str(node.NODE), "program.js"], {}, folder)
            assert printed.startswith(answer), page
            assert proxy.left == []
    assert healed == 2


async def test_typescript_finds_no_error_in_a_fragment(tmp_path: Path) -> None:
    """The names that it imports exist, and so do the options that it passes."""
    folder = folder_of_an_app(tmp_path)
    (folder / "globals.d.ts").write_text(GLOBALS)
    names = [f"{page.removesuffix('.md')}-{number}.tsx" for number, (page, _) in enumerate(FRAGMENTS)]
    for name, (_, code) in zip(names, FRAGMENTS, strict=True):
        (folder / name).write_text(as_module(code))
    compiler = str(node.MODULES / "typescript/bin/tsc")
    options = ("--noEmit", "--allowJs", "--skipLibCheck", "--strictNullChecks", "false", "--noImplicitAny", "false")
    target = (
        "--jsx",
        "react-jsx",
        "--module",
        "esnext",
        "--moduleResolution",
        "bundler",
        "--target",
        "es2023",
        "--types",
        "node",
    )
    command = [str(node.NODE), compiler, *options, *target, "globals.d.ts", *names]
    await node.command(command, {}, folder)
