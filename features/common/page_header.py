"""The header of every page: the name, and a link to each page."""

from html import escape

# In the order of the header. A page without a key, or with a key without the scope, says so.
LINKS = {"Chat": "/", "Guides": "/guides", "API": "/docs", "Operations": "/ops", "Admin": "/admin"}


def page_header(current: str, more: str = "") -> str:
    """Returns the header of the page at the path `current` as HTML. `more` is HTML at its end."""
    links = "".join(
        f'<a href="{path}"{" aria-current=page" if path == current else ""}>{escape(text)}</a>'
        for text, path in LINKS.items()
    )
    return (
        '<header class="site"><a class="name" href="/"><span class="stroke"></span>Tailrace</a>'
        f'<nav aria-label="Pages">{links}</nav>{more}</header>'
    )
