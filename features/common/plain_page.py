"""HTML pages without scripts and external resources, in the colours of the page `/`."""

from functools import cache
from html import escape
from importlib.resources import files

from tailrace.features.common.page_header import page_header


def plain_page(title: str, content: str, current: str, form: str = "") -> str:
    """Returns the page at the path `current`. `content` and `form`, at the end of the page's header, are HTML."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="/page/icon.svg"><title>{escape(title)}</title><style>{_style()}</style></head>'
        f"<body>{page_header(current, form)}<main>{content}</main></body></html>"
    )


@cache
def _style() -> str:
    folder = files(__package__ or "")
    return "".join((folder / name).read_text("utf-8") for name in ("base.css", "plain_page.css"))
