"""Arguments and messages of the `tailrace` command."""

import fcntl
import io
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self
from unittest.mock import Mock

import httpx2
import msgspec
import pytest

from tailrace import __main__ as console_script
from tailrace.client import Client, TailraceError
from tailrace.client.events import Failed, Progress
from tailrace.deploy.cli.arguments import turn_id
from tailrace.deploy.cli.ask import read_question
from tailrace.deploy.cli.batch import Bar
from tailrace.deploy.cli.connection import find_url
from tailrace.deploy.cli.main import all_parsers, main, parser, parser_of_all
from tailrace.deploy.cli.output_file import open_output
from tailrace.deploy.cli.turns import find_turns
from tailrace.deploy.local import data_dir, nats_server, rolling_restart, running, status_file, up
from tailrace.deploy.local.errors import UpRefused
from tailrace.deploy.local.options import Options, default_data_dir
from tailrace.deploy.local.ports import find_free
from tailrace.deploy.local.status_file import ProcessEntry, Restart, UpStatus
from tailrace.features.webhooks import signature
from tailrace.proto.errors import SettingsInvalid
from tailrace.proto.ids import Tenant, new_id
from tailrace.proto.runtime.exit_status import EXIT_ERROR, EXIT_USAGE
from tailrace.proto.version import VERSION
from tests.harness.processes import CHECKOUT


@pytest.fixture
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory and home."""
    monkeypatch.chdir(tmp_path)
    for name in ("XDG_STATE_HOME", "XDG_DATA_HOME", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    return tmp_path


class RunUp:
    """Data directories of an `up` of this process: `run_up(folder)`."""

    def __init__(self) -> None:
        self._running: dict[Path, ExitStack] = {}

    def __call__(self, folder: Path, url: str = "") -> None:
        (stack := ExitStack()).enter_context(data_dir.lock(folder, "up"))
        self._running[folder] = stack
        nats = ProcessEntry("nats-server", os.getpid(), [], None)
        up = UpStatus("0.1.0", os.getpid(), url or f"http://{folder.name}", [nats], [], Restart())
        (folder / status_file.FILE).write_bytes(msgspec.json.encode(up))
        running.record(folder)

    def end(self, folder: Path) -> None:
        """Like `kill -9`: the files stay. Another process, this one, has the pid of `up`."""
        self._running.pop(folder).close()

    def end_all(self) -> None:
        for folder in [*self._running]:
            self.end(folder)


@pytest.fixture
def run_up() -> Iterator[RunUp]:
    made = RunUp()
    yield made
    made.end_all()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["up", "--port", "70000"], "'70000' is not a port from 0 to 65535"),
        (["up", "--port", "٣"], "'٣' is not a port from 0 to 65535"),
        (["up", "--port", "9" * 5000], "is not a port from 0 to 65535"),
        (["up", "--data", ""], "'' is not a directory"),
        (["doctor", "--data", "a" * 300], "is not a directory: File name too long"),
        (["up", "--host", ""], "'' is not an address"),
        (["up", "--generators", "0"], "'0' is not a count from 1 to 64"),
        (["up", "--sync", "never"], "invalid choice: 'never'"),
        (["up", "--gen", "2"], "unrecognized arguments: --gen;"),
        (["\x1b[2J\n"], "invalid choice: '\\x1b[2J\\n'"),
        (["keys", "lisst"], "invalid choice: 'lisst' (did you mean list?)"),
        (["turns", "--search", "\udcff"], "the argument '\\udcff' is not UTF-8"),
        (["turns", "--sesion", "x"], "unrecognized arguments: --sesion (did you mean --session?)"),
        (["export", "--user", "a", "--since", "2026-11-20"], "tailrace export: unrecognized arguments: --since; see"),
        (["turns", "--slowest", "--from", "monday"], "'monday' is not a day such as 2026-01-31"),
        (["turns", "--session", ""], "'' is not the id of a session: see `tailrace sessions`"),
        (["export", ".."], "'..' is not the id of a session"),
        (["turns", "now"], "tailrace turns: unrecognized arguments: now; see `tailrace turns --help`"),
        (["ask", "--resume", "Hi."], "not allowed with argument"),
        (["usage", "--by", "moon"], "'moon', and must be one of day, model"),
        (["usage", "--by", "day,day"], "send one dimension, or two different ones"),
        (["usage", "--by", "tenant,day"], "and must be one of day, model"),
        (["usage", "--user", ""], "'' is not a value of turns: leave the option out"),
        (["turns", "--costliest", "--metadata", "team"], "'team' is not a field of metadata and its value"),
        (["usage", "--from", "yesterday"], "'yesterday' is not a day such as 2026-01-31"),
        (["usage", "--tenant", "Acme"], "'Acme' is not a tenant"),
        (["webhook-secret", "--tenant", "Acme Inc."], "'Acme Inc.' is not a tenant"),
        (["monitoring", "new", "--runbook", 'https://wiki.example/"'], "is not an http or https URL"),
        (["monitoring", "new", "--runbook", "file:///RUNBOOK.md"], "is not an http or https URL"),
        (["keys", "create", "--tenant", "acme", "--limits", "request=1"], "the limits are requests, burst"),
        ([], "required: COMMAND"),
    ],
)
def test_an_invalid_argument_prints_one_sentence_and_exits_with_status_2(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sentence says what is wrong and names `--help`; no page of usage."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    printed = capsys.readouterr().err
    assert (stopped.value.code, printed.count("\n")) == (2, 1)
    assert sentence in printed
    assert "--help" in printed


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["export", "s1", "--from", "2026-11-20"], "a session is exported whole: --from and --to need --user or --all"),
        (["export", "s1", "--to", "2026-11-20"], "a session is exported whole: --from and --to need --user or --all"),
        (["turns", "--session", "s1", "--user", "a"], "--session lists all turns of a session: it cannot be combined"),
        (["turns", "--session", "s1", "--to", "2026-11-20"], "--session lists all turns of a session: it cannot be"),
    ],
)
def test_days_and_users_do_not_select_within_a_session(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == EXIT_USAGE
    assert f"tailrace: {sentence}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "query"),
    [
        (["--user", "ann"], {"limit": "50", "user": "ann"}),
        (
            ["--user", "ann", "--from", "2026-01-30", "--limit", "900"],
            {"limit": "100", "user": "ann", "from": "2026-01-30"},
        ),
        (["--from", "2026-01-31", "--to", "2026-01-31"], {"limit": "50", "from": "2026-01-31", "to": "2026-01-31"}),
        (["--search", "loire", "--user", "ann"], {"limit": "50", "q": "loire", "user": "ann"}),
        (
            ["--slowest", "--user", "ann", "--to", "2026-01-31"],
            {"order": "first_token_s", "limit": "50", "user": "ann", "from": "2026-01-31", "to": "2026-01-31"},
        ),
        (
            ["--costliest", "--model", "opus", "--key-id", "key_1", "--metadata", "team=a=b", "--to", "2026-01-31"],
            {"order": "-cost_usd", "limit": "50", "from": "2026-01-25", "to": "2026-01-31"}
            | {"model": "opus", "key": "key_1", "metadata[team]": "a=b"},
        ),
        ([], None),
    ],
)
def test_turns_selects_by_user_days_and_words(options: list[str], query: dict[str, str] | None) -> None:
    """Without an option, the running turns are listed."""
    client = Mock()
    find_turns(client, parser().parse_args(["turns", *options]))
    if query is None:
        client.turns.assert_called_once_with(None)
    else:
        client.items.assert_called_once_with("/v1/turns", query)


@pytest.mark.parametrize("arguments", [["up"], ["turns"], ["up", "--config", "one.toml"]])
def test_a_data_directory_that_is_a_loop_of_links_is_refused(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    Path("one.toml").write_text('[up]\ndata = "loop"\n')
    with pytest.raises(SystemExit) as stopped:
        main(arguments if "--config" in arguments else [*arguments, "--data", "loop"])
    assert stopped.value.code == EXIT_USAGE
    assert "argument --data: 'loop' is not a directory: Too many levels of symbolic links" in capsys.readouterr().err


def test_a_database_in_a_loop_of_links_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    Path("old.db").touch()
    assert main(["migrate-database", "old.db", "loop/new.db"]) == EXIT_ERROR
    assert "the database loop cannot be opened or written" in capsys.readouterr().err


def test_up_refuses_a_data_directory_whose_path_is_not_utf8(tmp_path: Path) -> None:
    """`.tailrace` in a working directory with such a name."""
    data = tmp_path / os.fsdecode(b"caf\xe9") / ".tailrace"
    with pytest.raises(UpRefused, match="is not UTF-8, or the locale is not: choose another with --data"):
        up.run(Options(port=0, data_dir=data), {})
    assert not data.exists()


@pytest.mark.parametrize("name", [b"gr\xfc\xdfe", "gr\xfc\xdfe".encode()])
def test_up_refuses_a_data_directory_that_a_locale_other_than_utf8_gives_another_name(
    name: bytes, tmp_path: Path
) -> None:
    """nats-server would store the log in a directory with the same name in UTF-8."""
    locale = "de_DE.ISO-8859-1"
    made = [shutil.which("localedef") or "", "-i", "de_DE", "-f", "ISO-8859-1", str(tmp_path / locale)]
    if not made[0] or subprocess.run(made, check=False, capture_output=True).returncode:
        pytest.skip("the sources of the locales are not installed (Debian: apt install locales)")
    ran = subprocess.run(
        [sys.executable, "-m", "tailrace", "up", "--port", "0", "--data", bytes(tmp_path) + b"/" + name],
        capture_output=True,
        check=False,
        timeout=60,
        cwd=CHECKOUT,
        env={"LOCPATH": str(tmp_path), "LC_ALL": locale},
    )
    assert (ran.returncode, ran.stderr.count(b"\n")) == (EXIT_ERROR, 1)
    assert ran.stderr.endswith(b"the locale is not: choose another with --data, or set LC_ALL=C.UTF-8\n")
    assert [path.name for path in tmp_path.iterdir()] == [locale]


def test_an_argument_that_the_locale_cannot_decode_is_refused_with_its_encoding() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "tailrace", "ask", "Gr\xfc\xdfe"],
        capture_output=True,
        text=True,
        check=False,
        cwd=CHECKOUT,
        env={"LC_ALL": "C", "PYTHONUTF8": "0"},
    )
    assert ran.returncode == EXIT_USAGE
    assert "is not ASCII, the encoding of the locale: set LC_ALL=C.UTF-8; see" in ran.stderr


def test_every_command_with_a_result_prints_it_as_json() -> None:
    """`up` runs until it is stopped, and `completion` prints a script. Each subcommand of a command has it."""
    without = {
        one.prog.removeprefix("tailrace ")
        for one in all_parsers(parser_of_all())
        if "--json" not in one.format_help() and "COMMAND" not in one.format_usage()
    }
    assert without == {"up", "completion"}


@pytest.mark.parametrize(
    ("arguments", "result"),
    [
        (["init", "new"], {"file": "new"}),
        (["webhook-secret", "--tenant", "acme"], {"tenant": "acme", "secret": r"whsec_[\w+/=]{44}"}),
        (["nats-config", "new", "--server", "localhost"], {"files": r"\['new/nats-1.conf', .*'new/admin.env'.*\]"}),
        (["monitoring", "new", "--runbook", "http://r"], {"files": r"\['new/.*\.json'.*\]"}),
    ],
)
def test_a_result_is_one_line_of_json(
    arguments: list[str],
    result: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TAILRACE_WEBHOOK_KEY", "0123456789abcdef" * 4)
    assert main([*arguments, "--json"]) == 0
    printed = capsys.readouterr().out
    found = msgspec.json.decode(printed)
    assert (printed.count("\n"), list(found)) == (1, list(result))
    assert [name for name, text in result.items() if not re.fullmatch(text, str(found[name]))] == []


def test_the_progress_of_a_batch_is_one_bar_on_a_terminal_and_one_line_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A dumb terminal would show the command that clears the line."""
    none, half = f"[{'.' * 30}] 0/2, 0 failed, $0.0000", f"[{'#' * 15}{'.' * 15}] 1/2, 1 failed, $0.5000"
    for output, kind, written in (
        (Terminal(), "xterm", f"\r{none}\x1b[K\r{half}\x1b[K\n"),
        (Terminal(), "dumb", f"{half}\n"),
        (io.StringIO(), "xterm", f"{half}\n"),
    ):
        monkeypatch.setenv("TERM", kind)
        bar = Bar(output)
        bar.show(Progress(cursor="1", done=0, failed=0, of=2, cost_usd=0.0))
        bar.show(Progress(cursor="2", done=0, failed=1, of=2, cost_usd=0.5))
        bar.close()
        assert output.getvalue() == written
    bar = Bar(output := io.StringIO())
    bar.show(Failed(code="backend_failed", message=HOSTILE, cursor="3"))
    bar.close()
    assert output.getvalue() == " failed: ]0;ta2Jb\n"


def test_a_period_that_ends_before_it_begins_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """An empty table would mean that nothing was used."""
    assert main(["usage", "--from", "2026-11-30", "--to", "2026-11-01"]) == EXIT_USAGE
    assert "--from 2026-11-30 is after --to 2026-11-01" in capsys.readouterr().err


def test_an_unreachable_nats_prints_one_sentence_on_standard_error(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Programs read standard output, so errors and library logs must not be there."""
    monkeypatch.setenv("TAILRACE_NATS_URL", f"nats://127.0.0.1:{find_free(1)[0]}")
    assert main(["keys", "list"]) == EXIT_ERROR
    printed = capfd.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)


def test_ctrl_c_during_the_imports_is_silent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupting:
        @staticmethod
        def find_spec(*_: object) -> None:
            raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "tailrace.deploy.cli.main")
    monkeypatch.setattr(sys, "meta_path", [Interrupting, *sys.meta_path])
    assert console_script.main() == 130
    assert capsys.readouterr() == ("", "")


def test_the_help_lists_each_command_once_in_a_group_and_that_of_up_has_examples(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """For a second system, and for the real Claude."""
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    found = re.findall(r"^  ([a-z-]+)  +[a-z]", printed, re.MULTILINE)
    assert found == [each.prog.removeprefix("tailrace ") for each in all_parsers(parser())[1:]]
    assert re.findall(r"^(.*):$", printed, re.MULTILINE) == ["run", "ask", "look", "operate", "set up"]
    with pytest.raises(SystemExit) as stopped:
        main(["up", "--help"])
    assert stopped.value.code == 0
    examples = capsys.readouterr().out.partition("examples:\n")[2]
    assert "  tailrace up --data try --port 8001" in examples
    assert "ANTHROPIC_API_KEY=… tailrace up" in examples


def test_the_defaults_of_up_are_loopback_and_sync_always() -> None:
    """Other machines cannot connect, and a power cut loses nothing that was acknowledged."""
    given = parser().parse_args(["up"])
    assert (given.host, given.port) == ("127.0.0.1", 8000)
    assert (given.generators, given.gateways, given.sync) == (2, 1, "always")
    assert {parser().parse_args(["up", "--host", text]).host for text in ("::1", "[::1]")} == {"::1"}


def test_the_data_is_in_the_users_directory_unless_this_folder_has_a_data_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An installed `tailrace` works from any folder; a checkout keeps what `make run` began there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parser().parse_args(["up"]).data.is_relative_to(tmp_path)
    assert parser().parse_args(["up"]).data.name == "tailrace"
    (tmp_path / ".tailrace").mkdir()
    assert parser().parse_args(["up"]).data == Path(".tailrace")
    assert parser().parse_args(["up", "--data", "else"]).data == Path("else")


def test_commands_find_the_running_up_of_this_user_from_any_folder(
    empty_home: Path, run_up: RunUp, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one of this folder, else the one that was started last. --url, --data and TAILRACE_URL win over it.

    A command says on standard error which of several it has chosen, unless --data names it.
    """
    assert parser().parse_args(["status"]).data == default_data_dir()
    first, second, ended = (empty_home / name for name in ("first", "second", "ended"))
    for folder in (first, second, ended):
        run_up(folder)
    run_up.end(ended)
    found = parser().parse_args(["turns"]).data
    assert found == second
    assert find_url(None, {}, found) == "http://second"
    assert capsys.readouterr().err == "several systems run; this is http://second. Name another one with --url.\n"
    (second / data_dir.URL_FILE).write_text("nats://second")
    assert nats_server.find_url(found, {}) == "nats://second"
    assert capsys.readouterr().err == "several systems run; this is http://second. Name another one with --data.\n"
    assert nats_server.find_url(found, {"TAILRACE_NATS_URL": "nats://own"}) == "nats://own"
    named = parser().parse_args(["turns", "--data", str(second)]).data
    assert (find_url(None, {}, named), nats_server.find_url(named, {})) == ("http://second", "nats://second")
    with pytest.raises(SettingsInvalid, match=f"no `up` runs in {ended}: start one"):
        find_url(None, {}, ended)
    assert find_url(None, {"TAILRACE_URL": "http://named"}, found) == "http://named"
    assert find_url("http://given", {"TAILRACE_URL": "http://named"}, found) == "http://given"
    environ = {"TAILRACE_URL": "http://named", "TAILRACE_NATS_URL": "nats://own", "HOME": "/"}
    assert data_dir.without_overridden(environ, found) == environ
    assert data_dir.without_overridden(environ, named) == {"HOME": "/"}
    monkeypatch.setenv("TAILRACE_URL", "http://named.invalid")
    assert main(["turns", "--data", str(ended)]) == EXIT_USAGE
    assert f"no `up` runs in {ended}: start one" in capsys.readouterr().err
    (empty_home / ".tailrace").symlink_to(first)
    assert parser().parse_args(["turns"]).data == Path(".tailrace")
    assert find_url(None, {}, Path(".tailrace")) == "http://first"
    assert not capsys.readouterr().err
    assert parser().parse_args(["up"]).data == Path(".tailrace")


@pytest.mark.parametrize(
    "command",
    ["keys create --tenant acme", "keys rotate key_1", "keys revoke key_1", "restart", "restart-node nats-1"],
)
def test_a_change_needs_data_if_several_systems_run(
    command: str, empty_home: Path, run_up: RunUp, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first key of a system that was only guessed would lock out its clients."""
    folders = [empty_home / "first", empty_home / "the second"]
    for folder in folders:
        run_up(folder)
    assert main(command.split()) == EXIT_USAGE
    message = f"several systems run; name the one to change: --data {folders[0]}, --data '{folders[1]}'"
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("empty_home")
def test_an_up_that_was_killed_is_not_shown_when_another_process_has_its_pid(
    tmp_path: Path, run_up: RunUp, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also not while another command, such as a backup, uses the data directory."""
    run_up(folder := tmp_path / "data")
    assert status_file.read(folder) is not None
    run_up.end(folder)
    assert status_file.read(folder) is None
    data_dir.write_private(folder / data_dir.URL_FILE, "nats://admin:p@127.0.0.1:1")
    assert main(["status", "--data", str(folder)]) == EXIT_ERROR
    assert "ready" not in capsys.readouterr().out
    with data_dir.lock(folder, "backup"):
        assert status_file.read(folder) is None


def test_a_data_directory_that_a_command_looks_at_can_be_locked(tmp_path: Path) -> None:
    """The look holds the lock for a moment, and an `up` that starts meanwhile is not refused."""
    with data_dir.lock(tmp_path, "up"):
        pass
    with (tmp_path / data_dir.LOCK).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        looking = threading.Timer(data_dir.LOCK_S_MAX / 4, fcntl.flock, (file, fcntl.LOCK_UN))
        looking.start()
        with data_dir.lock(tmp_path, "up"):
            looking.join()


@pytest.mark.usefixtures("empty_home")
@pytest.mark.parametrize("is_foreign", [stat.S_ISDIR, stat.S_ISREG], ids=["directory", "file"])
def test_addresses_in_files_of_another_user_are_not_used(
    is_foreign: Callable[[int], bool], run_up: RunUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shared folder such as /tmp may contain them, and they would receive the user's key and question."""
    data = Path(".tailrace")
    run_up(data, "http://other")
    (data / data_dir.URL_FILE).write_text("nats://other")
    assert (find_url(None, {}, running.find_data_dir()), nats_server.url(data, {})) == ("http://other", "nats://other")
    fstat = os.fstat

    def stat_as_foreign(descriptor: int) -> os.stat_result:
        found = fstat(descriptor)
        return os.stat_result((*found[:4], 12345, *found[5:])) if is_foreign(found.st_mode) else found

    with monkeypatch.context() as patched:
        patched.setattr("os.fstat", stat_as_foreign)
        assert status_file.read(data) is None
        assert find_url(None, {}, running.find_data_dir()) is None
        with pytest.raises(SettingsInvalid, match=r"nats\.url is not used \(it belongs to another user\): run"):
            nats_server.url(data, {})
    monkeypatch.setattr("tailrace.deploy.local.data_dir.TRUSTED_OWNERS", ())
    monkeypatch.setattr("os.geteuid", lambda: data.stat().st_uid + 1)
    assert default_data_dir() != data


HOSTILE = "\x1b]0;t\x07a\x9b2Jb\u202e\u2067"


@pytest.fixture
def hostile_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway whose texts control a terminal."""
    message = {"role": "user", "content": HOSTILE}
    turn: dict[str, object] = {
        **dict.fromkeys(("turn", "outcome", "model", "content"), HOSTILE),
        "asked_at": "2026-11-22T00:00:00Z",
        "input": [message],
        "usage": {},
        "first_token_s": None,
        "parent": None,
    }
    session = {"turns": 1, "total_tokens": 1, "cost_usd": 0.5, "updated_at": "2026-11-22T00:00:00Z"}
    session |= {"session": f"{HOSTILE}\n\t{HOSTILE}", "title": HOSTILE}

    def answer(request: httpx2.Request) -> httpx2.Response:
        path = request.url.path
        if path.endswith("/cancel"):
            return httpx2.Response(200, json=turn)
        if path.endswith("/turns"):
            return httpx2.Response(200, json={"turns": [turn], "next": None})
        if path.endswith("/s1"):
            return httpx2.Response(200, json=session)
        if path.endswith("/turn-batches"):
            return httpx2.Response(200, json={"batch": "b1"})
        if path.endswith("/events"):
            return httpx2.Response(204)
        if path.endswith("/b1"):
            ended = {"outcome": "completed", "session": None, "error": None, "usage_is_estimated": False}
            return httpx2.Response(200, json={**turn, **ended, "cost_usd": 0.5, "total_s": 1.0})
        if path.endswith("/results"):
            result = msgspec.json.encode({"index": 0, "outcome": "completed", "text": HOSTILE})
            return httpx2.Response(200, content=result + b"\n")
        data = [] if path.endswith("/usage") else [session]
        return httpx2.Response(200, json={"data": data, "next": None})

    def connect(*_: object, **__: object) -> Client:
        return Client("http://gateway", http=httpx2.Client(transport=httpx2.MockTransport(answer)))

    for name in ("batch", "cancel", "export", "sessions", "top", "turns"):
        monkeypatch.setattr(f"tailrace.deploy.cli.{name}.connect", connect)


@pytest.mark.usefixtures("hostile_gateway")
@pytest.mark.parametrize(
    ("arguments", "lines"),
    [(["turns"], 2), (["sessions"], 2), (["cancel", str(new_id())], 1), (["top", "--url", "http://gateway"], 4)],
)
def test_texts_of_the_gateway_do_not_control_the_terminal(
    arguments: list[str], lines: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """And none adds a line to a table."""
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert printed.count("]0;ta2Jb") >= 2
    assert [line for line in printed.splitlines() if not line.isprintable()] == []
    assert printed.count("\n") == lines


@pytest.mark.usefixtures("hostile_gateway")
@pytest.mark.parametrize("arguments", [["turns"], ["sessions"], ["cancel", str(new_id())], ["batch", "inputs.jsonl"]])
def test_json_does_not_control_the_terminal_and_is_complete_elsewhere(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """JSON has no escapes for the control characters above U+007F."""
    monkeypatch.chdir(tmp_path)
    Path("inputs.jsonl").write_text('{"params": {"message": "hi"}}')
    shown, piped = Terminal(), io.StringIO()
    for output in (shown, piped):
        monkeypatch.setattr(sys, "stdout", output)
        assert main([*arguments, "--json"]) == 0
    assert shown.getvalue().removesuffix("\n").isprintable()
    assert HOSTILE[-5:] in piped.getvalue()


@pytest.mark.usefixtures("hostile_gateway")
def test_export_writes_a_new_private_file_and_replaces_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new, existing, link = (tmp_path / name for name in ("new.md", "existing.md", "link.md"))
    existing.write_text("before")
    link.symlink_to(tmp_path / "elsewhere")
    before = os.umask(0)
    try:
        statuses = [main(["export", "s1", "--output", str(path)]) for path in (new, existing, link)]
    finally:
        os.umask(before)
    assert statuses == [0, EXIT_USAGE, EXIT_USAGE]
    assert (new.stat().st_mode & 0o777, existing.read_text()) == (0o600, "before")
    assert not (tmp_path / "elsewhere").exists()
    assert capsys.readouterr().err.count("exists already: name another file\n") == 2


def test_an_output_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    """Nor does it share the incomplete file of another command."""
    output = tmp_path / "all.jsonl"

    def write_both() -> None:
        with open_output(output, overwrites=False) as slow:
            slow.write("slow")
            with open_output(output, overwrites=False) as fast:
                fast.write("fast")

    with pytest.raises(FileExistsError):
        write_both()
    assert ([*tmp_path.iterdir()], output.read_text()) == ([output], "fast")
    with open_output(output, overwrites=True) as again:
        again.write("again")
    assert output.read_text() == "again"


def test_output_to_a_pipe_is_written_to_it(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor() as readers:
        reading = readers.submit(pipe.read_text)
        with open_output(pipe, overwrites=True) as file:
            file.write("text")
        assert reading.result() == "text"
    assert pipe.is_fifo()


@pytest.mark.usefixtures("hostile_gateway")
def test_a_session_is_exported_as_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "s1", "--json"]) == 0
    printed = capsys.readouterr().out
    assert (printed.count("\n"), len(msgspec.json.decode(printed)["turns"])) == (1, 1)


@pytest.mark.usefixtures("hostile_gateway")
def test_an_export_that_fails_leaves_no_file_under_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor another one: an incomplete file has data of users."""
    output = tmp_path / "all.jsonl"
    items = Client.items

    def fail(client: Client, path: str, *args: Any) -> Iterator[dict[str, Any]]:
        if path == "/v1/sessions":
            raise SettingsInvalid("the connection is lost")
        return items(client, path, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Client, "items", fail)
        assert main(["export", "--all", "--output", str(output)]) == EXIT_USAGE
    assert list(tmp_path.iterdir()) == []
    assert main(["export", "--all", "--output", str(output)]) == 0
    assert list(tmp_path.iterdir()) == [output]
    assert output.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
@pytest.mark.parametrize(
    ("arguments", "unbuffered"),
    [("completion bash", ""), ("completion bash", "1"), ("up --help", "1"), ("--version", "")],
)
def test_an_output_on_a_full_disk_is_reported_in_one_sentence(arguments: str, unbuffered: str) -> None:
    """Also if Python writes the output only at the end."""
    environ = {"PYTHONPATH": str(CHECKOUT), "PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-m", "tailrace", *arguments.split()]
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=environ)
    assert (ran.returncode, ran.stderr) == (1, "tailrace: the output cannot be written: No space left on device\n")


@pytest.fixture
def _no_input(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        yield


@pytest.mark.usefixtures("_no_input", "empty_home")
def test_without_any_gateway_a_client_command_says_so_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It does not wait as for one that restarts."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    url = f"http://127.0.0.1:{find_free(1)[0]}"
    monkeypatch.setattr("tailrace.client.core.URL", url)
    refused = f"cannot connect to {url} (Connection refused)"
    advice = "start a gateway with `tailrace up`, or name one with --url"
    assert main(["ask", "Hi."]) == EXIT_ERROR
    assert capsys.readouterr().err == f"tailrace: {refused}: {advice}\n"
    monkeypatch.setattr("tailrace.client.core.FIRST_TRIES_MAX", 1)
    for arguments in (["ask", "Hi."], ["ask", "Hi.", "--json"], ["sessions"]):
        assert main([*arguments, "--url", url]) == EXIT_ERROR
        assert capsys.readouterr() == ("", f"{refused}; trying again\ntailrace: {refused}: {advice}\n")
    # As of `tailrace ask >&-`.
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["ask", "Hi.", "--url", url]) == EXIT_ERROR
    sys.stdout.close()


@pytest.mark.parametrize(
    ("question", "piped", "sent"),
    [
        ("Why?", None, "Why?"),
        ("Why?", "a report\n", "a report\n\nWhy?"),
        ("-", "Why?\n", "Why?"),
        (None, "Why?\n", "Why?"),
        ("Why?", "", "Why?"),
    ],
)
def test_the_standard_input_is_put_before_the_question(
    question: str | None, piped: str | None, sent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless it is a terminal, from which `ask` would wait for an end."""
    its, ours = os.openpty() if piped is None else os.pipe()
    with os.fdopen(ours, "wb") as writer, os.fdopen(its) as stdin:
        if piped is not None:
            writer.write(piped.encode())
            writer.close()
        monkeypatch.setattr("sys.stdin", stdin)
        assert read_question(question) == sent


def test_bytes_of_the_standard_input_that_are_not_utf8_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `git diff | tailrace ask`, with a file in Latin-1."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9")))
    monkeypatch.setattr("tailrace.deploy.cli.ask.run", lambda *_: read_question("-") == "caf\ufffd")
    assert main(["ask", "-"])


def test_characters_that_the_standard_output_cannot_encode_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a locale for Latin-1."""
    monkeypatch.setattr("sys.stdout", output := io.TextIOWrapper(printed := io.BytesIO(), encoding="latin-1"))
    with pytest.raises(SystemExit):
        main(["--help"])
    output.flush()
    assert b"usage: tailrace COMMAND \\u2026" in printed.getvalue()


@pytest.mark.parametrize(
    ("arguments", "unused", "printed"),
    [
        ("--version", {"asyncio", "httpx2", "nats", "structlog"}, f"tailrace {VERSION}\n"),
        ("ask --help", {"nats", "structlog", "prometheus_client"}, "usage: tailrace ask "),
    ],
)
def test_a_command_loads_only_what_it_needs(arguments: str, unused: set[str], printed: str) -> None:
    """All modules take a second of CPU."""
    program = (
        "import sys; from tailrace.__main__ import main\n"
        "try: main()\nexcept SystemExit: print(*sys.modules, file=sys.stderr)"
    )
    command = [sys.executable, "-c", program, *arguments.split()]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONPATH": str(CHECKOUT)})
    assert unused & set(ran.stderr.split()) == set()
    assert ran.stdout.startswith(printed)


def test_monitoring_writes_files_that_link_to_the_runbook(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All but the source code. An existing folder is not changed."""
    folder, runbook = tmp_path / "new", "https://wiki.example/a?b=RUNBOOK.md"
    assert main(["monitoring", str(folder), "--runbook", runbook]) == 0
    written = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert {path.suffix for path in written} == {".json", ".yml"}
    assert not [path for path in written if "runbook.example" in path.read_text()]
    assert f"{runbook}#service-levels" in (folder / "rules.yml").read_text()
    links = json.loads((folder / "dashboards/tailrace-users.json").read_text())["panels"][1]["links"]
    assert links[0]["url"].startswith(f"{runbook}#")
    assert main(["monitoring", str(folder), "--runbook", runbook]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main(["monitoring", "/dev/null/new", "--runbook", runbook]) == 1
    refused = capsys.readouterr().err
    assert refused == "tailrace: cannot write /dev/null/new (Not a directory): name another folder\n"


def test_monitoring_links_to_the_runbook_of_the_page_with_panels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "new"
    for configured, refused in (
        ("", "with --runbook"),
        ("RUNBOOK.md", "TAILRACE_RUNBOOK_URL: 'RUNBOOK.md' is not an http"),
    ):
        monkeypatch.setenv("TAILRACE_RUNBOOK_URL", configured)
        assert main(["monitoring", str(folder)]) == EXIT_USAGE
        assert refused in capsys.readouterr().err
    monkeypatch.setenv("TAILRACE_RUNBOOK_URL", "https://wiki.example/r")
    assert main(["monitoring", str(folder)]) == 0
    assert "https://wiki.example/r#service-levels" in (folder / "rules.yml").read_text()


def test_webhook_secret_prints_that_of_the_newest_key(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A secret of an empty key would be known to all."""
    old, new = "o" * 32, "n" * 32
    monkeypatch.setenv("TAILRACE_WEBHOOK_KEY", f"{new},{old}")
    for arguments, tenant in (["--tenant", "acme"], "acme"), ([], "local"):
        assert main(["webhook-secret", *arguments]) == 0
        expected = signature.format_secret(signature.derive_secret(new.encode(), Tenant(tenant)))
        assert capsys.readouterr().out.strip() == expected
    for key, sentence in ("", "is not set"), ("short", "32 characters or more"):
        monkeypatch.setenv("TAILRACE_WEBHOOK_KEY", key)
        assert main(["webhook-secret"]) == 2
        printed = capsys.readouterr()
        assert (printed.out, sentence in printed.err) == ("", True)


@pytest.mark.parametrize(
    ("url", "environ", "sentence"),
    [
        ("ftp://x", {}, "is not a URL of a gateway, such as http://127.0.0.1:8000"),
        ("gw:8000", {}, "is not a URL of a gateway, because it has no scheme: write http://gw:8000"),
        ("http://[::1", {}, "is not a URL of a gateway"),
        ("http://127.0.0.1:1", {"ALL_PROXY": "socks5://127.0.0.1:9"}, "the proxy in the environment cannot be used"),
        ("http://127.0.0.1:1", {"HTTP_PROXY": "foo://x"}, "the proxy in the environment cannot be used"),
    ],
)
def test_batch_refuses_an_unusable_url_or_proxy(
    url: str,
    environ: dict[str, str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert main(["batch", "questions.jsonl", "--url", url]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("prefix", ["", "chatcmpl-", "resp_", "msg_", "batch_"])
def test_a_turn_is_named_by_its_id_in_any_protocol(prefix: str) -> None:
    turn = new_id()
    assert turn_id(f"{prefix}{turn}") == turn


def test_restart_says_what_it_waits_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = [Restart(), *[Restart(now="generator-1")] * 3, Restart(now="gateway-1"), Restart(ended=1)]
    states = (UpStatus(VERSION, os.getpid(), "http://127.0.0.1:1", [], [], restart) for restart in steps)
    signals = list[int]()
    monkeypatch.setattr(os, "kill", lambda _, number: signals.append(number))
    # Options look for another `up` in other folders.
    monkeypatch.setattr(status_file, "read", lambda folder: next(states) if folder == tmp_path else None)
    monkeypatch.setattr(rolling_restart, "POLL_S", 0.0)
    monkeypatch.setattr(rolling_restart, "REMIND_S", 0.0)
    assert main(["restart", "--data", str(tmp_path)]) == 0
    assert signals == [rolling_restart.SIGNAL]
    finishes = "it finishes its turns, which `tailrace top` shows"
    assert capsys.readouterr().out.splitlines()[:4] == [
        f"restarting generator-1 ({finishes})",
        *[f"waiting for generator-1 for 0 s: {finishes}"] * 2,
        "restarting gateway-1 (its readers resume at another gateway)",
    ]


def test_a_change_of_numbers_says_what_starts_and_how_many_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    running_now = [
        ProcessEntry(name, 1, [], None) for name in ("persistence", "generator-1", "generator-2", "gateway-1")
    ]
    steps = [Restart(), *[Restart(now="generator-2", action="starting")] * 2, Restart(ended=1)]
    states = (UpStatus(VERSION, os.getpid(), "http://127.0.0.1:1", running_now, [], restart) for restart in steps)
    monkeypatch.setattr(os, "kill", lambda *_: None)
    monkeypatch.setattr(status_file, "read", lambda folder: next(states) if folder == tmp_path else None)
    monkeypatch.setattr(rolling_restart, "POLL_S", 0.0)
    assert main(["restart", "--generators", "2", "--data", str(tmp_path)]) == 0
    starting, end = capsys.readouterr().out.splitlines()
    assert starting == "starting generator-2 (the others continue until they are ready)"
    assert end.startswith("generators: 2, gateways: 1, after ")
    request = msgspec.json.decode((tmp_path / rolling_restart.REQUEST).read_bytes(), type=rolling_restart.Request)
    assert request == rolling_restart.Request(generators=2, gateways=None, version=VERSION)


def test_restart_ends_when_another_up_has_taken_the_place_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As when a service manager starts a killed `up` again: it ends no restart."""
    steps = [(os.getpid(), Restart()), (os.getpid(), Restart(now="generator-1")), *[(os.getpid() + 1, Restart())] * 3]
    states = (UpStatus(VERSION, pid, "http://127.0.0.1:1", [], [], one) for pid, one in steps)
    monkeypatch.setattr(os, "kill", lambda *_: None)
    monkeypatch.setattr(status_file, "read", lambda folder: next(states) if folder == tmp_path else None)
    assert main(["restart", "--data", str(tmp_path)]) == EXIT_ERROR
    assert "`up` has ended" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("has_ended", "sentence"), [(True, "no `up` runs in"), (False, "nats-1 does not answer: `up` starts it again")]
)
def test_a_server_that_does_not_answer_is_not_restarted(
    has_ended: bool,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The error names no server to repair, also if its `up` has ended: the files stay."""
    data_dir.write_private(tmp_path / data_dir.URL_FILE, ",".join(["nats://admin:p@127.0.0.1:1"] * 3))
    (folder := tmp_path / "cluster" / "nats-1").mkdir(parents=True)
    (folder / nats_server.PID_FILE).write_text("1")
    up = UpStatus(VERSION, os.getpid(), "http://127.0.0.1:1", [], [], Restart())
    monkeypatch.setattr(status_file, "read", lambda _: None if has_ended else up)
    monkeypatch.setattr("tailrace.proto.nats.connection.OPEN_TIMEOUT_S", 0.1)
    assert main(["restart-node", "nats-1", "--data", str(tmp_path)]) == EXIT_ERROR
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "status"), [(["restart"], EXIT_ERROR), (["turns"], EXIT_USAGE)])
def test_a_command_names_what_uses_a_data_directory_without_an_up_that_it_can_use(
    arguments: list[str], status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A backup, or an `up` that starts, or one of another user: to start another one would be refused."""
    with data_dir.lock(tmp_path, "backup"):
        assert main([*arguments, "--data", str(tmp_path)]) == status
    assert f"is in use by `tailrace backup` (pid {os.getpid()}): wait" in capsys.readouterr().err


def test_erase_asks_on_a_terminal_and_needs_yes_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a confirmation it does not connect."""
    erase = ["erase", "--user", "ann", "--url", "http://127.0.0.1:1"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("yes\n"))
    assert main(erase) == EXIT_USAGE
    assert "add --yes" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", None)
    assert main(erase) == EXIT_USAGE
    sys.stdin.close()
    assert "add --yes" in capsys.readouterr().err
    for typed, status in (("\n", EXIT_ERROR), ("no\n", EXIT_ERROR), ("", EXIT_ERROR)):
        monkeypatch.setattr(sys, "stdin", Terminal(typed))
        assert main(erase) == status
        question, _, printed = capsys.readouterr().err.partition("[y/N] ")
        assert (question, printed) == ("Erase all data of the user ann? It cannot be undone. ", "nothing was erased\n")
    monkeypatch.setattr("tailrace.deploy.cli.erase.connect", ErasingClient)
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    assert main(erase) == 0
    assert main([*erase, "--yes"]) == 0
    assert capsys.readouterr().out.count('"turns": 1') == 2


def test_erase_reports_the_sum_of_its_parts_and_repeats_no_lost_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A refused request has erased nothing, and is repeated. The report before a lost one is printed."""
    part = {"id": "ann", "turns": 2, "log_entries": 5, "rows": {"turns": 2}, "complete": False}
    busy = TailraceError("busy", status=503, is_temporary=True)
    lost = TailraceError("no answer", is_temporary=True)
    replies: list[dict[str, Any] | TailraceError] = []

    class Replying(ErasingClient):
        def request(self, *_: object, **__: object) -> Any:
            reply = replies.pop(0)
            if isinstance(reply, TailraceError):
                raise reply
            return reply

    monkeypatch.setattr("tailrace.deploy.cli.connection.Client", Replying)
    monkeypatch.setattr("tailrace.deploy.cli.erase.REFUSED_WAIT_S", 0)
    erase = ["erase", "--user", "ann", "--url", "http://127.0.0.1:1", "--yes", "--json"]
    replies = [part, busy, part, part | {"complete": True}]
    assert main(erase) == 0
    expected = {"id": "ann", "turns": 6, "log_entries": 15, "rows": {"turns": 6}, "complete": True}
    assert json.loads(capsys.readouterr().out) == expected
    replies = [part, part, lost, part]
    assert main(erase) == EXIT_ERROR
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {
        "id": "ann",
        "turns": 4,
        "log_entries": 10,
        "rows": {"turns": 4},
        "complete": False,
    }
    assert "what the last request has erased is not in the report" in printed.err
    assert replies == [part]


class ErasingClient:
    """A client of a gateway that erases one turn."""

    url = "http://127.0.0.1:1"

    def __init__(self, *_: object, **__: object) -> None: ...
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...
    def request(self, *_: object, **__: object) -> dict[str, int]:
        return {"turns": 1}
