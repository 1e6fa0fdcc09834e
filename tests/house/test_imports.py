"""Imports go one way, and every foreign library has one door."""

import re
import subprocess
import sys
from pathlib import Path

import proto

ROOT = Path(__file__).parents[2]


def test_the_import_contracts_are_kept() -> None:
    """deploy -> gateway | generators | persistence -> proto; nats, anthropic and SQLite behind their doors."""
    lint_imports = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([lint_imports, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_proto_is_ours() -> None:
    """Google's proto-plus has the same import name; the checkout comes first."""
    assert Path(proto.__file__).parent == ROOT / "proto"


def test_what_cannot_be_read_has_one_name() -> None:
    """Whoever catches the decoder's own exception alone lets pass Python's, which anybody can send: decoding.py."""
    folders = ("proto", "gateway", "generators", "persistence", "deploy")
    caught = re.compile(r"except\b[^\n]*(msgspec\.DecodeError|UnicodeDecodeError)")
    sources = {
        path.relative_to(ROOT).as_posix(): path.read_text() for name in folders for path in ROOT.glob(f"{name}/**/*.py")
    }
    # It reads a file as text, and decodes nothing.
    assert {path for path, source in sources.items() if caught.search(source)} == {"gateway/prompts.py"}
