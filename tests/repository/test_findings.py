"""The scripts of `findings/`, their page, and the program that runs them."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tools import run_findings
from tools.generated_pages import build_page

ROOT = Path(__file__).parents[2]
SCRIPTS = run_findings.scripts_of(run_findings.FOLDER)
SETUP = '. "$(dirname "$0")/setup.sh"'
ROW = re.compile(r"^\| \[(.+)\]\(\.\./findings/([^)]+)\) \| (.+) \|$", re.MULTILINE)
# Longer than Python or Node starts on a loaded machine.
LIMIT_S = "8"
WAITING_TASK = """
import asyncio
async def wait():
    await asyncio.sleep(60)
async def main():
    await asyncio.gather(wait())
asyncio.run(main())
"""
FIELDS = ["Guessed", "Version", "Seen", "Meets", "Tailrace"]


def header(script: Path) -> list[str]:
    """Returns the lines of the comment at the top, without `# ` and the first line (`#!`)."""
    lines = script.read_text().split(f"\n{SETUP}\n", 1)[0].splitlines()[1:]
    assert all(re.match(r"#( |$)", line) for line in lines), script.name
    return [line[2:] for line in lines]


def test_the_page_has_each_script_with_its_title() -> None:
    """The title is the first line of the script, as a reader of the file sees it."""
    rows = ROW.findall(build_page("docs/FINDINGS.md"))
    assert [(title, name) for title, name, _ in rows] == [(header(one)[0], one.name) for one in SCRIPTS]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: str(script.name))
def test_a_script_has_its_header_and_can_be_run(script: Path) -> None:
    """It names guess, version, output, readers and what Tailrace does, in this order, and its exit status."""
    title, empty, *rest = header(script)
    assert title.endswith(".")
    assert empty == ""
    assert [one for line in rest if (one := line.split(":")[0]) in FIELDS] == FIELDS
    assert rest[-1].startswith("Exits non-zero if this changes, and 77 if ")
    assert os.access(script, os.X_OK)
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert f"\n{SETUP}\n" in text
    assert re.search(r"^ *run_(python|node) ", text, re.MULTILINE)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: str(script.name))
def test_a_script_pins_its_packages_and_names_no_index(script: Path) -> None:
    """Each package has one version; pip and npm use their own configuration."""
    text = script.read_text()
    for packages in re.findall(r"^ *(?:run_python|run_node|answer) (.*?)(?:<<.*)?$", text, re.MULTILINE):
        assert all(re.search(r"[=@]\d[\w.]*$", one) for one in re.findall(r"'([^' ]+)'", packages)), packages
    assert not re.search(r"(pip|npm) install|mktemp", text)
    assert not re.search(r"--(?:extra-)?index-url|--registry|--find-links", text)
    assert set(re.findall(r"https?://([^/\s\"'`:{]+)", text)) <= {"127.0.0.1", "localhost"}


def test_runner_counts_passed_changed_and_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One script that changed makes the status 1, and its output is printed."""
    for name, status in (("a", 0), ("b", 77), ("c", 1)):
        script = tmp_path / f"{name}.sh"
        script.write_text(f"#!/usr/bin/env bash\necho output of {name}\nexit {status}\n")
        script.chmod(0o755)
    assert run_findings.main(["--folder", str(tmp_path), "a.sh", "b.sh"]) == 0
    assert "1 passed, 0 changed, 1 not there" in capsys.readouterr().out
    assert run_findings.main(["--folder", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "1 passed, 1 changed, 1 not there" in out
    assert "output of c" in out
    assert "output of a" not in out
    assert run_findings.main(["--folder", str(tmp_path), "no such name"]) == 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of findings with the set-up, and a `npm` that counts its installations."""
    for shared in ("setup.sh", "show_waits.py", "show_waits.mjs"):
        (tmp_path / shared).write_text((run_findings.FOLDER / shared).read_text())
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (
        ("node", '[ "$1" = --version ] && echo v0 || cat "${@: -1}"'),
        ("npm", 'echo "$*" >> "$(dirname "$0")/installed"; mkdir "$3/node_modules"; case "$*" in *gone*) exit 1; esac'),
    ):
        (programs / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (programs / name).chmod(0o755)
    return tmp_path


def run_script(folder: Path, body: str, name: str = "a.sh", **environ: str) -> tuple[int, list[str]]:
    """Returns the status and the lines of the output of a script with this body."""
    (folder / name).write_text(f"{SETUP}\n{body}\n")
    environment = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "TMPDIR": str(folder), **environ}
    script = ["bash", str(folder / name)]
    done = subprocess.run(
        script, check=False, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60
    )
    return done.returncode, done.stdout.splitlines()


@pytest.mark.parametrize(
    ("body", "status", "verdict"),
    [
        ("run_python <<< 'print(1)'", 0, "Verdict: as the header says."),
        ("run_python <<< 'assert 1 == 2'", 1, "Verdict: changed (status 1)."),
        ("run_python <<< 'raise SystemExit(77)'", 77, "Verdict: not there."),
        ("skip 'needs a disk'", 77, "Verdict: not there."),
        ("run_node 'gone@1.0' <<< x", 77, "Verdict: not there."),
        ("false", 1, "Verdict: changed (status 1)."),
        ("kill -TERM $$", 143, "Verdict: none, ended by a signal."),
    ],
)
def test_a_script_ends_with_its_verdict_and_removes_its_folder(
    folder: Path, body: str, status: int, verdict: str
) -> None:
    """The last line is the verdict, and nothing stays in the temporary directory."""
    before = set(folder.iterdir()) | {folder / "a.sh"}
    code, lines = run_script(folder, body)
    assert (code, lines[-1]) == (status, verdict)
    assert set(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("body", "waited_for", "shown"),
    [
        ("run_python <<< 'import time; time.sleep(60)'", "the Python program", "import time; time.sleep(60)"),
        (f"run_python <<< '{WAITING_TASK}'", "the Python program", "    await asyncio.sleep(60)"),
        ("install_python() { sleep 60; }; run_python 'p==1' <<< x", "the installation of p==1", ""),
    ],
    ids=["thread", "task", "installation"],
)
def test_a_script_ends_after_its_time_and_says_where_it_waited(
    folder: Path, body: str, waited_for: str, shown: str
) -> None:
    """A stack shows the line of the program, and for asyncio the innermost `await` of each task."""
    code, lines = run_script(folder, body, FINDINGS_LIMIT_S=LIMIT_S)
    assert (code, lines[-1]) == (124, f"Verdict: changed (no end after {LIMIT_S} s).")
    assert f"No end after {LIMIT_S} s. The script waited for: {waited_for}." in lines
    assert any(shown in line for line in lines)


def test_a_node_program_says_what_it_waits_with(folder: Path) -> None:
    (folder / "bin/node").unlink()
    if not shutil.which("node"):
        pytest.skip("needs Node")
    code, lines = run_script(folder, "run_node <<< 'setTimeout(() => {}, 60000)'", FINDINGS_LIMIT_S=LIMIT_S)
    assert (code, lines[0]) == (124, f"No end after {LIMIT_S} s. The script waited for: the Node program.")
    assert lines[1].startswith("Waits with: ")
    assert "Timeout" in lines[1]


@pytest.mark.parametrize("end", ["a normal end", "the time limit", "a signal"])
def test_processes_of_a_program_end_with_the_script(folder: Path, end: str) -> None:
    """They do not end by themselves, and the program does not end them."""
    program = f"""
import signal, subprocess, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
process = subprocess.Popen(["sleep", "60"])
open("{folder}/pid", "w").write(str(process.pid))
time.sleep({0 if end == "a normal end" else 60})
"""
    started = f'while [ ! -s "{folder}/pid" ]; do sleep 0.1; done'
    interrupt = f"({started}; kill -TERM $$) > /dev/null 2>&1 &" if end == "a signal" else ""
    code, _ = run_script(folder, f"{interrupt}\nrun_python <<'PYTHON'{program}PYTHON", FINDINGS_LIMIT_S=LIMIT_S)
    assert code == {"a normal end": 0, "the time limit": 124, "a signal": 143}[end]
    assert not is_running(int((folder / "pid").read_text()))


def test_scripts_with_the_same_packages_share_an_environment(folder: Path) -> None:
    """It is installed once for `make findings`, and other versions have another one. A failed one is not used."""
    shared = folder / "shared"
    for name, package in (("a.sh", "p@1.0"), ("b.sh", "p@1.0"), ("c.sh", "p@2.0")):
        body = f"run_node '{package}' <<< text"
        expected = (0, ["text", "Verdict: as the header says."])
        assert run_script(folder, body, name, FINDINGS_PACKAGES=str(shared)) == expected
    installed = (folder / "bin/installed").read_text().splitlines()
    assert [one.split()[-1] for one in installed] == ["p@1.0", "p@2.0"]
    assert run_script(folder, "run_node 'gone@1.0' <<< x", FINDINGS_PACKAGES=str(shared))[0] == 77
    assert not list(shared.glob("*gone*"))


def test_ctrl_c_ends_what_a_script_has_started(tmp_path: Path) -> None:
    """The script has a session of its own, so the terminal's signal reaches the runner only."""
    script, started = tmp_path / "a.sh", tmp_path / "pid"
    script.write_text(f"#!/usr/bin/env bash\nsleep 60 &\necho $! > {started}\nwait\n")
    script.chmod(0o755)
    runner = subprocess.Popen([sys.executable, "-m", "tools.run_findings", "--folder", tmp_path], cwd=ROOT)
    deadline = time.monotonic() + 20
    while not (started.exists() and started.read_text().strip()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    runner.send_signal(signal.SIGINT)
    assert runner.wait(20) != 0
    while is_running(int(started.read_text())):
        assert time.monotonic() < deadline + 20
        time.sleep(0.05)


def test_ctrl_c_while_a_script_starts_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script, started = tmp_path / "a.sh", list[subprocess.Popen[str]]()
    script.write_text("#!/usr/bin/env bash\nsleep 60\n")
    script.chmod(0o755)
    start = subprocess.Popen

    def start_and_interrupt(*given: Any, **named: Any) -> subprocess.Popen[str]:
        started.append(start(*given, **named))
        os.kill(os.getpid(), signal.SIGINT)
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", start_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_findings.run(script, tmp_path)
    assert started[0].returncode is not None


def is_running(pid: int) -> bool:
    """Returns whether the process exists and is no zombie."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"
