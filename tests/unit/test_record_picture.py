"""The terminal and the SVG of README's picture."""

import re

from tools.record_picture import PICTURE, Film, Screen, render_animation


def lines(screen: Screen) -> list[str]:
    return ["".join(cell.char for cell in row).rstrip() for row in screen.rows]


def test_a_screen_shows_what_a_terminal_would() -> None:
    """Also if a sequence arrives in two parts."""
    screen = Screen(3)
    screen.write("first\r\nsecond\r\n\x1b[1")
    screen.write("A\x1b[2K\x1b[92mthi\x1b[0mrd\r\n")
    assert lines(screen) == ["first", "third", ""]
    assert len({cell.style for cell in screen.rows[1][:5]}) == 2


def test_a_line_is_visible_from_its_begin_to_its_end_and_the_last_one_without_animation() -> None:
    assert ' visibility="hidden"><animate' in render_animation(1.0, 2.0, 4.0)
    assert 'values="hidden;visible;hidden" keyTimes="0.0000;0.2500;0.5000"' in render_animation(1.0, 2.0, 4.0)
    assert render_animation(1.0, 4.0, 4.0).startswith("><animate")


def test_the_picture_uses_no_outside_address() -> None:
    film = Film()
    film.above.write("<b>")
    film.take(is_forced=True)
    assert "&lt;b&gt;" in film.svg()
    for svg in (film.svg(), PICTURE.read_text(encoding="utf-8")):
        assert re.findall(r'(?:href|src|url|@import|xmlns)[=(]?"?([^" )]*)', svg) == ["http://www.w3.org/2000/svg"]
