"""What is generated is what the code says."""

from pathlib import Path

import pytest

from tools.generate_docs import generated

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("path", "content"), generated().items())
def test_a_generated_file_is_as_its_code(path: str, content: str) -> None:
    """Settings, errors and schemas in the docs are those of this code; `make schema` writes them anew."""
    assert (ROOT / path).read_text() == content, f"{path} is old: run `make schema`"
