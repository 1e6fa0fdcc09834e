"""The configuration file, the `.env` beside it, the example that `init` writes, and shell completion."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tailrace.deploy.cli.main import main, parser
from tailrace.deploy.local.check_environment import SERVICES
from tailrace.deploy.local.config_file import CHOSEN_BY_UP, SECRETS
from tailrace.deploy.local.configuration import load
from tailrace.proto.errors import SettingsInvalid
from tailrace.proto.runtime import settings


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def write(text: str, name: str = "tailrace.toml") -> None:
    Path(name).write_text(text)


def test_the_environment_wins_over_dotenv_which_wins_over_the_file() -> None:
    """Values become the texts that variables have; a `$` in a secret stays."""
    write('heartbeat_s = 1.5\nwebhooks = true\nhosts = ["a.example", "b.example"]\nmax_tokens = 1\nqueue_max = 1\n')
    write("# secrets\nexport ANTHROPIC_API_KEY='k$HOME'\nTAILRACE_MAX_TOKENS=2\nTAILRACE_QUEUE_MAX=2\n", ".env")
    environ = load(None, {"TAILRACE_QUEUE_MAX": "3"}).environ
    assert environ == {
        "TAILRACE_HEARTBEAT_S": "1.5",
        "TAILRACE_WEBHOOKS": "true",
        "TAILRACE_HOSTS": "a.example,b.example",
        "ANTHROPIC_API_KEY": "k$HOME",
        "TAILRACE_MAX_TOKENS": "2",
        "TAILRACE_QUEUE_MAX": "3",
    }


def test_a_setting_of_an_earlier_version_is_passed_on_to_the_processes_which_warn_of_it() -> None:
    write("hedge_after_s = 2\n")
    assert load(None, {}).environ == {"TAILRACE_HEDGE_AFTER_S": "2"}


def test_a_byte_order_mark_is_not_a_part_of_a_name() -> None:
    write("\ufeffheartbeat_s = 1.5\n")
    write("\ufeffANTHROPIC_API_KEY=k\n", ".env")
    assert load(None, {}).environ == {"TAILRACE_HEARTBEAT_S": "1.5", "ANTHROPIC_API_KEY": "k"}


def test_an_argument_wins_over_the_environment_and_the_file() -> None:
    """Options of `up` have their defaults from the file; other commands have the same data directory."""
    write('port = 1\nhost = "::1"\n[up]\ndata = "d"\ngenerators = 5\ncluster = true\n')
    options = load(None, {"TAILRACE_PORT": "2"}).options
    given = parser(options).parse_args(["up", "--generators", "4"])
    assert (given.host, given.port, given.data, given.generators, given.cluster) == ("::1", 2, Path("d"), 4, True)
    assert parser(options).parse_args(["keys", "list"]).data == Path("d")


def test_without_a_file_the_environment_is_unchanged_and_dotenv_is_not_read() -> None:
    """A `.env` alone belongs to another program."""
    write("TAILRACE_MAX_TOKENS=2\n", ".env")
    assert load(None, {"A": "b"}) == ({"A": "b"}, {})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "heartbet_s = 1",
            "heartbet_s is not a setting (did you mean heartbeat_s?); `tailrace explain settings` lists all",
        ),
        ("TAILRACE_HEARTBEAT_S = 1", "TAILRACE_HEARTBEAT_S is not a setting (did you mean heartbeat_s?)"),
        ("[gateway]\nheartbeat_s = 1", "gateway is not a setting"),
        ("heartbeat_s = 0", "heartbeat_s: Expected `float` > 0.0"),
        ('concurrency = "many"', "concurrency: 'many'; expected a whole number"),
        ("hosts = 2026-01-01", "hosts is not a text, a number, true or false"),
        ("generators = 4", "generators is an option of `tailrace up`: write it below a line [up]"),
        ("[up]\nheartbeat_s = 1", "heartbeat_s is a setting, not an option of [up]: move it above the line [up]"),
        # A setting that `up` chooses.
        ("[up]\ngenerator = 3", "generator is not an option of [up] (did you mean generators?); it has"),
        ("[up]\ngenerator_count = 4", "generator_count is not an option of [up] (did you mean generators?); it has"),
        ("[up]\ngenerators = 65", "[up] generators: Expected `int` <= 64"),
        ("[up]\ndata = 1", "[up] data: Expected `str`, got `int`"),
        ("up = 1", "up is a table: write [up] above the options of `tailrace up`"),
        ("a = ", "is not valid TOML: Invalid value (at end of document)"),
    ],
)
def test_a_wrong_file_is_refused_with_one_sentence(
    text: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the command starts, with exit status 2 and the name of the file."""
    write(text, "other.toml")
    assert main(["keys", "list", "--config", "other.toml"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("tailrace: other.toml")
    assert sentence in printed
    assert printed.count("\n") == 1


def test_other_unusable_files_are_refused() -> None:
    with pytest.raises(SettingsInvalid, match=r"^other\.toml cannot be read: No such file"):
        load(Path("other.toml"), {})
    write("")
    write("A=b\nsecret\n", ".env")
    with pytest.raises(SettingsInvalid, match=r"^\.env: line 2 is not NAME=VALUE$"):
        load(None, {})


@pytest.mark.parametrize("is_link", [False, True], ids=["file", "link"])
@pytest.mark.parametrize("name", ["tailrace.toml", ".env"])
def test_a_file_of_another_user_is_used_only_if_it_is_named(
    name: str, is_link: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a shared folder such as /tmp. A link of another user may lead to a file of this one."""
    for each in ("tailrace.toml", ".env", "own"):
        write("", each)
    if is_link:
        Path(name).unlink()
        Path(name).symlink_to("own")
    theirs = Path(name).lstat().st_ino
    monkeypatch.setattr("tailrace.deploy.local.config_path.is_own", lambda found: found.st_ino != theirs)
    with pytest.raises(
        SettingsInvalid, match=rf"^{re.escape(name)} belongs to another user: .* --config tailrace\.toml"
    ):
        load(None, {})
    assert load(Path("tailrace.toml"), {}).environ == {}


def test_init_writes_every_setting_but_secrets_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    """The file changes nothing, not even when all of its defaults are set; it is private; it replaces no file."""
    assert main(["init"]) == 0
    assert Path("tailrace.toml").stat().st_mode & 0o777 == 0o600
    text = Path("tailrace.toml").read_text()
    assert load(None, {}) == ({}, {})
    assert "line: ANTHROPIC_API_KEY, " in text
    write(re.sub(r"(?m)^#(?=\w)", "", text))
    environ, options = load(None, {})
    for _, kind in SERVICES:
        set_here = {f.name for f in msgspec.structs.fields(kind)} - CHOSEN_BY_UP - {*SECRETS}
        assert {settings.env_name(name) for name in set_here} <= environ.keys()
        assert environ.keys().isdisjoint(map(settings.env_name, SECRETS))
        assert settings.read(kind, environ) == kind()
    given = parser().parse_args(["up"])
    assert {name: getattr(given, name) for name in options} == {**options, "data": given.data}
    assert main(["init"]) == 1
    assert "cannot write tailrace.toml: File exists" in capsys.readouterr().err
    assert main(["init", "new/folder/tailrace.toml"]) == 0
    assert load(Path("new/folder/tailrace.toml"), {}) == ({}, {})


def test_a_data_directory_may_be_below_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write("[up]\ndata = '~/data'\n")
    assert load(None, {}).options == {"data": str(tmp_path / "data")}
    write("[up]\ndata = '~no-such-user/data'\n")
    with pytest.raises(SettingsInvalid, match=r"\[up\] data: "):
        load(None, {})


@pytest.mark.parametrize(
    ("shell", "complete"),
    [
        ("bash", "source ./script; COMP_WORDS=(tailrace ke); COMP_CWORD=1; _shtab_tailrace; echo ${COMPREPLY[@]}"),
        ("fish", "source ./script; complete -C 'tailrace ke' | cut -f 1"),
        ("zsh", "zsh -n script && echo keys"),
    ],
)
def test_a_shell_completes_commands(shell: str, complete: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In the real shells; zsh only parses the script."""
    assert main(["completion", shell]) == 0
    write(capsys.readouterr().out, "script")
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run([shell, "-c", complete], capture_output=True, text=True, check=False, timeout=20)
    assert done.stdout.split() == ["keys"], done.stderr


def test_windows_is_refused_with_a_sentence() -> None:
    """Instead of an error of the first module that Windows lacks."""
    code = "import sys; sys.platform = 'win32'; import tailrace"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("Tailrace runs on Linux and macOS. On Windows, install it in WSL 2.")
