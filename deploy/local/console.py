"""What the person at the terminal sees: every line with the name of the process that said it; never decides."""

import asyncio
import os
from asyncio import StreamReader, StreamReaderProtocol
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TextIO

# A line without an end must not fill our memory: at this length it is printed as it is.
LINE_BYTES_MAX = 65_536
COLOURS = (36, 32, 33, 35, 34, 96, 92, 93, 95, 94)


def split(text: bytes) -> tuple[list[str], bytes]:
    """The whole lines of `text`, the empty ones left out, and the rest that is not a line yet."""
    *lines, rest = text.split(b"\n")
    if len(rest) > LINE_BYTES_MAX:
        lines, rest = [*lines, rest], b""
    return [line.decode(errors="replace").rstrip() for line in lines if line.strip()], rest


def is_coloured(out: TextIO, environ: Mapping[str, str]) -> bool:
    return out.isatty() and not environ.get("NO_COLOR")


class Console:
    """Prints to `out`. Names are padded to `width`; each gets its own colour when `coloured`."""

    def __init__(self, out: TextIO, *, width: int, coloured: bool) -> None:
        self.out = out
        self.width = width
        self.coloured = coloured
        self.names: list[str] = []

    def say(self, text: str, name: str = "up") -> None:
        self.show(self.prefix(name) + text)

    def show(self, text: str) -> None:
        """Without a name: for what is read, copied, or waited for by a script."""
        with suppress(BrokenPipeError):  # nobody reads any more: no reason to stop serving
            print(text, file=self.out, flush=True)

    def prefix(self, name: str) -> str:
        if name not in self.names:
            self.names.append(name)
        label = f"{name:<{self.width}} | "
        colour = COLOURS[self.names.index(name) % len(COLOURS)]
        return f"\x1b[{colour}m{label}\x1b[0m" if self.coloured else label

    async def follow(self, name: str, pipe: int, is_told: Callable[[str], bool]) -> None:
        """Print what comes out of the descriptor `pipe` until its other end is closed by all who hold it.

        `is_told` is asked of each line, once.
        """
        reader = StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: StreamReaderProtocol(reader), os.fdopen(pipe, "rb", buffering=0)
        )
        rest = b""
        try:
            while text := await reader.read(LINE_BYTES_MAX):
                lines, rest = split(rest + text)
                for line in filter(is_told, lines):
                    self.say(line, name)
        finally:
            if rest and is_told(last := rest.decode(errors="replace")):
                self.say(last, name)
            transport.close()
