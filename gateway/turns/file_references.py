"""References to uploaded files in the content blocks of messages."""

from collections.abc import Iterator, Sequence


def has_files(contents: Sequence[object]) -> bool:
    """Returns whether one of these contents of messages refers to a file, or has a `container_upload`."""
    return any(True for _ in find_files(contents))


def find_files(contents: Sequence[object]) -> Iterator[str | None]:
    """Yields the id of the file to which each block refers; None for a `container_upload`."""
    for content in contents:
        for block in content if isinstance(content, list) else ():
            match block:
                case {"type": "document" | "image", "source": {"type": "file", "file_id": str(file)}}:
                    yield file
                case {"type": "container_upload"}:
                    yield None
                case {"type": "tool_result", "content": list(inner)}:
                    yield from find_files([inner])
                case {"type": "document", "source": {"type": "content", "content": list(inner)}}:
                    yield from find_files([inner])
