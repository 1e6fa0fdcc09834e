"""Where a text has something from, as OpenAI's protocols annotate it: of what Claude cites, pages and files. Pure.

Claude cites for a whole block of its text, so that block's place is the annotation's. Places count code points of the
text as this client has it; what is between start and end was said of the source. Sources: OpenAI's API reference,
"Annotations"; Anthropic's docs, "Citations" and "Search results".
"""

from collections.abc import Iterator
from typing import Any

Annotation = dict[str, Any]


def of_chat(citations: object, start: int, end: int) -> list[Annotation]:
    """Of a block that stands from `start` to `end` in its message. This protocol knows pages alone."""
    pages = (_page(citation, start, end) for citation in _each(citations))
    return [{"type": "url_citation", "url_citation": page} for page in pages if page is not None]


def of_responses(citations: object, end: int) -> list[Annotation]:
    """Of a block of `end` characters, which is a message of its own."""
    return [found for citation in _each(citations) if (found := _of_responses(citation, end)) is not None]


def _of_responses(citation: dict[str, Any], end: int) -> Annotation | None:
    match citation:
        case {"file_id": str(file)}:
            return {
                "type": "file_citation",
                "file_id": file,
                "filename": _title(citation, "document_title"),
                "index": end,
            }
        case _:
            page = _page(citation, 0, end)
            return None if page is None else {"type": "url_citation", **page}


def _page(citation: dict[str, Any], start: int, end: int) -> Annotation | None:
    match citation:
        # A search result that a client has brought may be from anywhere.
        case {"url": str(url)} | {"source": str(url)} if url.startswith(("https://", "http://")):
            return {"url": url, "title": _title(citation, "title"), "start_index": start, "end_index": end}
        case _:
            return None


def _title(citation: dict[str, Any], name: str) -> str:
    """Claude may have none, and to OpenAI it is always a string."""
    title = citation.get(name)
    return title if isinstance(title, str) else ""


def _each(citations: object) -> Iterator[dict[str, Any]]:
    """What is no list of objects cites nothing: what stands in a block was judged by nobody here."""
    if isinstance(citations, list | tuple):
        yield from (each for each in citations if isinstance(each, dict))
