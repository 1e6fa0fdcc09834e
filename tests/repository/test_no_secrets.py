"""No tracked file contains a secret. Secrets are recognised by their format."""

import re
import subprocess

import pytest

from tests.harness.processes import CHECKOUT

FORMS = {
    "a private key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----\s+[A-Za-z0-9+/=\s]{40}",
    "a key of Anthropic's": r"\bsk-ant-[a-z]{3,5}[0-9]{2}-[A-Za-z0-9_-]{40,}",
    "a key of OpenAI's": r"\bsk-(?:proj-|svcacct-)?[A-Za-z0-9_-]{20}T3BlbkFJ[A-Za-z0-9_-]{20}",
    "a key of AWS": r"\b(?:AKIA|ASIA)(?!IOSFODNN7EXAMPLE)[A-Z0-9]{16}\b",
    "a key of Google's": r"\bAIza[0-9A-Za-z_-]{35}\b",
    "a token of GitHub's": r"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{60,})",
    "a token of Slack's": r"\bxox[abprs]-[A-Za-z0-9-]{20,}",
    "a signed token (JWT)": r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{20,}",
    "a key of ours": r"\btr-[A-Za-z0-9_-]{32,}",
    "a password in a URL": r"\b[a-z][a-z0-9+]*://[^\s/:@\"'{}<>$]+:(?!secret@|password@|PASSWORD@)[A-Za-z0-9]{16,}@",
}
BAD_NAMES = re.compile(r"(^|/)(\.env(\..*)?|id_(rsa|ecdsa|ed25519)|.*\.(pem|p12|pfx|jks|key)|credentials(\.json)?)$")
# One sample of each format, in pieces, so that this file contains none.
SAMPLES = {
    "a private key": "-----BEGIN RSA " + "PRIVATE KEY-----\n" + "A" * 64,
    "a key of Anthropic's": "sk-" + "ant-api03-" + "a1B2" * 12,
    "a key of OpenAI's": "sk-" + "a" * 20 + "T3Blbk" + "FJ" + "a" * 20,
    "a key of AWS": "AK" + "IA" + "Q" * 16,
    "a key of Google's": "AI" + "za" + "b" * 35,
    "a token of GitHub's": "gh" + "p_" + "c" * 36,
    "a token of Slack's": "xox" + "b-" + "1" * 24,
    "a signed token (JWT)": "ey" + "JhbGciOiJIUzI1NiJ9.ey" + "JzdWIiOiJhY21lIn0." + "s" * 43,
    "a key of ours": "tr" + "-" + "d" * 43,
    "a password in a URL": "nats://ops:" + "e1" * 16 + "@nats.example:4222",
}


def tracked_files() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=CHECKOUT, capture_output=True, check=True)
    return [name for name in listed.stdout.decode().split("\0") if (CHECKOUT / name).is_file()]


def secrets(text: str) -> list[str]:
    return [form for form, pattern in FORMS.items() if re.search(pattern, text)]


@pytest.mark.rule("S17")
@pytest.mark.skipif(not (CHECKOUT / ".git").exists(), reason="not a git checkout")
def test_no_tracked_file_contains_a_secret() -> None:
    """Keys, tokens, passwords, and files that usually contain them."""
    names = tracked_files()
    found = {name: secrets((CHECKOUT / name).read_text(errors="replace")) for name in names}
    assert {name: forms for name, forms in found.items() if forms} == {}
    assert [name for name in names if BAD_NAMES.search(name)] == []
    assert len(names) > 300


@pytest.mark.parametrize("form", FORMS)
def test_secret_format_is_recognised(form: str) -> None:
    """Exactly one pattern matches each sample."""
    assert secrets(f'key = "{SAMPLES[form]}"') == [form]
