"""HTML pages without scripts and external resources, in the colours of the page `/`."""

from collections.abc import Mapping
from functools import cache
from html import escape
from importlib.resources import files


def plain_page(title: str, content: str, links: Mapping[str, str], current: str, form: str = "") -> str:
    """Returns a page. `content` and `form`, at the end of the page's header, are HTML.

    `links` maps the texts of the header's links to paths; `current` is the path of this page.
    """
    shown = "".join(
        f'<a href="{escape(path)}"{" aria-current=page" if path == current else ""}>{escape(text)}</a>'
        for text, path in links.items()
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="/page/icon.svg"><title>{escape(title)}</title><style>{_style()}</style></head>'
        f'<body><header><a class="name" href="/">Tailrace</a>{shown}{form}</header><main>{content}</main></body></html>'
    )


@cache
def _style() -> str:
    return (files(__package__ or "") / "plain_page.css").read_text("utf-8")
