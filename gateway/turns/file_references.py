"""References to uploaded files in the content blocks of messages, and the reader that replaces them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from typing import Protocol

from tailrace.proto.entries import Message
from tailrace.proto.ownership import Scope


class FileReader(Protocol):
    """The files of one request, each of which is read once."""

    @property
    def bytes(self) -> int:
        """The size of all contents so far. A file to which two blocks refer counts twice."""

    async def insert(self, messages: Sequence[Message]) -> list[Message]:
        """Returns the messages with the contents of the files to which they refer. Raises Refused, LogUnavailable."""


OpenFiles = Callable[[Scope, int, AsyncExitStack], FileReader]
"""Called with the size of the request's body. Memory for large files is reserved until the stack is closed."""


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
