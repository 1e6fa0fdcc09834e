"""Generated files equal what the code generates."""

from pathlib import Path

import pytest

from tools.generate_docs import generated

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("path", "content"), generated().items())
def test_generated_file_is_up_to_date(path: str, content: str) -> None:
    """`make schema` writes them."""
    assert (ROOT / path).read_text() == content, f"{path} is out of date: run `make schema`"
