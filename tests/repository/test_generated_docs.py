"""Generated files equal what the code generates."""

from pathlib import Path

from tools.generate_docs import generate_files

ROOT = Path(__file__).parents[2]


def test_generated_files_are_up_to_date() -> None:
    """`make schema` writes them."""
    out_of_date = [path for path, content in generate_files().items() if (ROOT / path).read_text() != content]
    assert out_of_date == [], "out of date: run `make schema`"
