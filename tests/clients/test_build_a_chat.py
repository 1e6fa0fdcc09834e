"""The chat of docs/CHAT.md: its files as printed, except for addresses, in Chromium."""

import re
from pathlib import Path

import httpx2
import pytest

from tailrace.deploy.local.ports import find_free
from tests.clients import node
from tests.clients.test_examples import OLDER_SDKS, running_server
from tests.harness.generator_in_loop import words
from tests.harness.processes import CHECKOUT
from tests.harness.system import System
from tests.integration.conftest import NewGateway

PAGE = (CHECKOUT / "docs/CHAT.md").read_text()
FILES = dict(
    zip(
        ("server.py", "static/index.html", "chat.jsx"),
        re.findall(r"^```(?:py|html|jsx)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL),
        strict=True,
    )
)
SECRET = "a-secret-with-at-least-32-characters"
MODULES = ("react", "react-dom", "scheduler", "esbuild", "@esbuild")


@pytest.mark.timeout(180)
@pytest.mark.usefixtures("generator", "persistence")
async def test_the_chat_of_the_page_has_logins_history_branches_files_approvals_tabs_and_works_offline(
    system: System, new_gateway: NewGateway, tmp_path: Path, browser: str
) -> None:
    (port,) = find_free(1)
    ours = f"http://127.0.0.1:{port}"
    jwts = {"jwt_secret": SECRET, "jwt_issuer": "chat", "jwt_audience": "tailrace"}
    gateway = await new_gateway(system.nats_url, origins=ours, **jwts)
    for name, code in FILES.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(code.replace("http://localhost:8000", gateway.url))
    modules = tmp_path / "node_modules"
    modules.mkdir()
    for name in MODULES:
        (modules / name).symlink_to(node.MODULES / name)
    (modules / "tailrace").mkdir()
    for file in (CHECKOUT / "web").glob("*.*s*"):
        (modules / "tailrace" / file.name).write_text(file.read_text())
    building = re.search(r"npx (esbuild .*)$", PAGE, re.MULTILINE)
    assert building is not None
    await node.command([str(node.NODE), "node_modules/esbuild/bin/esbuild", *building[1].split()[1:]], {}, tmp_path)
    serving = [OLDER_SDKS, "-m", "uvicorn", "server:app", "--port", str(port)]
    async with running_server(port, gateway.url, tmp_path, *serving, TAILRACE_JWT_SECRET=SECRET):
        [seen] = await node.run("build-a-chat.mjs", ours, deadline_s=150, CHROMIUM=browser)
        async with httpx2.AsyncClient(auth=("ada", "lovelace")) as http:
            token = (await http.get(f"{ours}/login")).json()["token"]
        path = f"/v1/sessions/{seen['session']}/turns"
        turns = (await gateway.client.get(path, headers={"authorization": f"Bearer {token}"})).json()["data"]
    assert seen["failures"] == []
    [[asked, text, outcome]] = seen["stopped"]
    assert (asked, words(3000).startswith(text), outcome) == ("#sim words=3000 rate=60", True, "cancelled")
    assert seen["edited"] == [["#sim words=4 rate=0", words(4), "completed"]]
    with_file, decided = turns[3]["input"][0]["content"], turns[5]["input"][0]["content"]
    assert (with_file[0]["source"]["data"], with_file[1]["text"]) == ("A river.", "#sim words=5 rate=0")
    assert turns[3]["parent"] == turns[0]["turn"]
    assert (decided[0]["type"], seen["approved"][0]) == ("tool_result", "")
    assert seen["last"] == ["#sim words=6 rate=0", words(6), "completed"]
    assert (seen["history"], seen["theirs"]) == (["New chat", "Name a river.", "#sim words=3000 rate=60"], ["New chat"])
