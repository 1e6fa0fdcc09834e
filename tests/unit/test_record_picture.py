"""The SVG of README's picture."""

import re

from tools.record_picture import PICTURE, Film


def test_the_picture_uses_no_outside_address() -> None:
    film = Film()
    film.above.write("<b>")
    film.take(is_forced=True)
    assert "&lt;b&gt;" in film.svg()
    for svg in (film.svg(), PICTURE.read_text(encoding="utf-8")):
        assert re.findall(r'(?:href|src|url|@import|xmlns)[=(]?"?([^" )]*)', svg) == ["http://www.w3.org/2000/svg"]
