"""Records the picture of README's first screen, docs/images/first-screen.svg, from a real run.

Run `.venv/bin/python -m tools.record_picture`. It starts `tailrace up` with a new data directory and the simulated
Claude at a few words a second. It runs `tailrace ask` on a pseudo-terminal, kills the gateway and the generator of the
answer with `kill -9`, presses Ctrl-C, and resumes. It fails if the answer lacks a word or repeats one. Ids of processes
differ in each picture, and times differ by some tenths of a second. The port is shown as 8000.
"""

import argparse
import asyncio
import json
import os
import re
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, PIPE
from html import escape
from pathlib import Path
from signal import SIGINT, SIGTERM
from typing import NamedTuple

from tailrace.client import AsyncClient
from tailrace.deploy.local.ports import find_free
from tailrace.deploy.simulated_claude.prose import markdown

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs/images/first-screen.svg"
QUESTION = "Why do streams break?"
WORDS_PER_S = 8
BELOW = "another terminal ↓"
COLUMNS, ROWS, ROWS_BELOW = 84, 24, 1
# Pixels of a character cell.
WIDTH, HEIGHT, MARGIN = 8.4, 18, 16
TYPED_PER_S = 28
# At the end the picture stands still.
STILL_S = 4.0
READ_S = 2.0
POLL_S = 0.1
FRAMES_PER_S = 12
DEADLINE_S = 60.0

TITLE = "An answer goes on in mid-sentence after kill -9 of the gateway, kill -9 of the generator, and Ctrl-C"
PAPER, INK, DIM = "#10151c", "#dfe6ee", "#8291a3"
COLOURS = ("#5b6675", "#ff7b72", "#7ee2a8", "#f2cc60", "#6cc5ff", "#d2a8ff", "#76e3ea", "#dfe6ee")
OWN = re.compile("TAILRACE_|ANTHROPIC_|CLAUDE_")
SEQUENCE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|\x1b\][^\x07]*\x07|\x1b[^\[\]]")


class Style(NamedTuple):
    """How a character looks: its colour in CSS, and whether it is bold."""

    colour: str = INK
    is_bold: bool = False


class Cell(NamedTuple):
    """One character of a screen."""

    char: str = " "
    style: Style = Style()


class Screen:
    """The part of a terminal that `tailrace ask` uses: colours, moves of the cursor, erased lines. No scrolling."""

    def __init__(self, rows: int) -> None:
        self.rows = [[Cell()] * COLUMNS for _ in range(rows)]
        self._row, self._column, self._style = 0, 0, Style()
        self._rest = ""

    def write(self, text: str) -> None:
        """Prints text and obeys its control sequences. A sequence may be split between two calls."""
        text, at = self._rest + text, 0
        # A sequence may be cut in two.
        cut = text.rfind("\x1b")
        end = cut if cut >= 0 and not SEQUENCE.match(text, cut) else len(text)
        self._rest = text[end:]
        for found in SEQUENCE.finditer(text, 0, end):
            self._print(text[at : found.start()])
            self._obey(found[1] or "", found[2] or "")
            at = found.end()
        self._print(text[at:end])

    def _print(self, text: str) -> None:
        for char in text:
            if char == "\r":
                self._column = 0
            elif char == "\n":
                self._row += 1
            elif char.isprintable():
                if self._column == COLUMNS:
                    self._row, self._column = self._row + 1, 0
                self.rows[self._row][self._column] = Cell(char, self._style)
                self._column += 1

    def _obey(self, given: str, kind: str) -> None:
        number = int(given) if given.isdigit() else 0
        match kind:
            case "A":
                self._row = max(0, self._row - (number or 1))
            case "K":
                first = 0 if number else self._column
                self.rows[self._row][first:] = [Cell()] * (COLUMNS - first)
            case "m":
                for code in given.split(";"):
                    self._style = apply_style_code(self._style, int(code or 0))
            case _:
                pass

    def clear(self) -> None:
        self.rows[:] = [[Cell()] * COLUMNS for _ in self.rows]
        self._row = self._column = 0


def apply_style_code(style: Style, code: int) -> Style:
    match code:
        case 0:
            return Style()
        case 1:
            return style._replace(is_bold=True)
        case 2:
            return style._replace(colour=DIM)
        case _ if 30 <= code <= 37:
            return style._replace(colour=COLOURS[code - 30])
        case _ if 90 <= code <= 97:
            return style._replace(colour=COLOURS[code - 90])
        case 22 | 39:
            return Style(is_bold=style.is_bold and code == 39)
        case _:
            return style


class Film:
    """Both terminals over time: for each line, its contents with the times at which they appeared."""

    def __init__(self) -> None:
        self.above, self.below = Screen(ROWS), Screen(ROWS_BELOW)
        self._start = time.monotonic()
        self._lines: list[list[tuple[float, tuple[Cell, ...]]]] = [[] for _ in range(ROWS + ROWS_BELOW)]
        self._last = -1.0

    @property
    def now(self) -> float:
        return time.monotonic() - self._start

    def take(self, *, is_forced: bool = False) -> None:
        """Records the lines that have changed, at most FRAMES_PER_S times a second unless `is_forced`."""
        now = self.now
        if not is_forced and now - self._last < 1 / FRAMES_PER_S:
            return
        self._last = now
        for line, row in zip(self._lines, (*self.above.rows, *self.below.rows), strict=True):
            if not line or line[-1][1] != tuple(row):
                line.append((now, tuple(row)))

    async def type(self, screen: Screen, text: str) -> None:
        """Shows a command as a person types it."""
        screen.write("\x1b[92m$\x1b[0m ")
        for char in text:
            screen.write(char)
            self.take(is_forced=True)
            await asyncio.sleep(1 / TYPED_PER_S)
        screen.write("\r\n")

    def svg(self) -> str:
        """Returns the film as an animated SVG, which shows its last picture for another STILL_S seconds."""
        length_s = self.now + STILL_S
        gap = HEIGHT * 2
        width = COLUMNS * WIDTH + 2 * MARGIN
        height = (ROWS + ROWS_BELOW) * HEIGHT + 2 * MARGIN + gap
        between = MARGIN + ROWS * HEIGHT + gap / 2
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img">',
            f"<title>{TITLE}</title>",
            "<style>text{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;white-space:pre}</style>",
            f'<rect width="100%" height="100%" rx="10" fill="{PAPER}"/>',
            f'<path d="M0 {between}H{width:.0f}" stroke="{COLOURS[0]}"/>',
            f'<text x="{width - MARGIN:.0f}" y="{between - 8}" fill="{DIM}" text-anchor="end">{BELOW}</text>',
        ]
        for number, line in enumerate(self._lines):
            y = MARGIN + (number + 0.8) * HEIGHT + (gap if number >= ROWS else 0)
            ends = [begin for begin, _ in line[1:]] + [length_s]
            for (begin, cells), end in zip(line, ends, strict=True):
                if shown := runs(cells, y):
                    parts.append(f"<g{render_animation(begin, end, length_s)}{shown}</g>")
        return "\n".join([*parts, "</svg>"]) + "\n"


def render_animation(begin: float, end: float, length_s: float) -> str:
    """Returns the rest of a tag, with the times at which it is visible. What stays to the end needs no animation."""
    values, times = ["hidden", "visible", "hidden"], [0.0, begin / length_s, end / length_s]
    is_last = end >= length_s
    if is_last:
        values, times = values[:2], times[:2]
    moments = ";".join(f"{moment:.4f}" for moment in times)
    return (
        f'{"" if is_last else " visibility=" + chr(34) + "hidden" + chr(34)}><animate attributeName="visibility" '
        f'values="{";".join(values)}" keyTimes="{moments}" calcMode="discrete" dur="{length_s:.2f}s" '
        'repeatCount="indefinite"/>'
    )


def runs(cells: tuple[Cell, ...], y: float) -> str:
    """Returns the texts of a line, one for each style."""
    parts, column = [], 0
    while column < len(cells):
        style, first = cells[column].style, column
        while column < len(cells) and cells[column].style == style:
            column += 1
        text = "".join(cell.char for cell in cells[first:column]).rstrip()
        skipped = len(text) - len(text.lstrip())
        if text := text.lstrip():
            bold = ' font-weight="700"' if style.is_bold else ""
            x, width = MARGIN + (first + skipped) * WIDTH, len(text) * WIDTH
            where = f'x="{x:.1f}" y="{y:.1f}" textLength="{width:.1f}"'
            parts.append(f'<text {where} fill="{style.colour}"{bold}>{escape(text)}</text>')
    return "".join(parts)


class Command:
    """A command on a pseudo-terminal, shown in `screen`."""

    def __init__(self, film: Film, environ: dict[str, str], replaced: tuple[str, str]) -> None:
        self._film, self._environ, self._replaced = film, environ, replaced

    async def run(self, *arguments: str, given: bytes = b"") -> None:
        """Starts `tailrace` with `arguments` and the standard input `given`."""
        terminal, its = os.openpty()
        size = {"COLUMNS": str(COLUMNS), "LINES": str(ROWS), "TERM": "xterm-256color"}
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "tailrace", *arguments),
            env=self._environ | size,
            stdin=PIPE,
            stdout=its,
            stderr=its,
        )
        os.close(its)
        assert self.process.stdin is not None  # noqa: S101  # for mypy
        self.process.stdin.write(given)
        self.process.stdin.close()
        self._reading = asyncio.create_task(asyncio.to_thread(self._read, terminal))

    def _read(self, terminal: int) -> None:
        while True:
            try:
                text = os.read(terminal, 65_536).decode(errors="replace")
            except OSError:  # the command has ended
                os.close(terminal)
                return
            text = text.replace(*self._replaced)
            self._film.above.write(text)
            self._film.take()

    async def wait_for_end(self) -> None:
        """Returns when the command has ended and its output is shown. Raises TimeoutError after DEADLINE_S."""
        await asyncio.wait_for(self.process.wait(), DEADLINE_S)
        await self._reading
        self._film.take(is_forced=True)


async def kill(film: Film, pid: int, what: str) -> None:
    """Shows a `kill -9` of the process in the lower terminal, and runs it."""
    film.below.clear()
    await film.type(film.below, f"kill -9 {pid}          # {what}")
    film.take(is_forced=True)
    await (await asyncio.create_subprocess_exec("kill", "-9", str(pid))).wait()


async def record(url: str, environ: dict[str, str], data: Path) -> Film:
    """Asks a question, kills the gateway and the generator, interrupts the command, and resumes the answer.

    Raises SystemExit if the answer is not complete in the end, TimeoutError.
    """

    def pid_of(name: str) -> int:
        processes = json.loads((data / "status.json").read_text())["processes"]
        return int(next(one["pid"] for one in processes if one["name"].startswith(name)))

    film = Film()
    replaced = (url, "http://127.0.0.1:8000")
    asking = Command(film, environ, replaced)
    await film.type(film.above, f'tailrace ask "{QUESTION}"')
    await asking.run("ask", QUESTION, given=f"#sim rate={WORDS_PER_S}\n".encode())
    async with AsyncClient(url) as client:
        turn = await find_running_turn(client)
        timeline = await output(environ, "turn", turn, "--json", "--data", str(data))
        generator = json.loads(timeline)["attempts"][-1]["generator"].rpartition("-")[0]
        await wait_for_words(client, turn, 8)
        await kill(film, pid_of("gateway"), "the gateway")
        await wait_for_words(client, turn, 12)
        await kill(film, pid_of(generator), "the generator that writes this answer")
        await wait_for_words(client, turn, 12)
        film.below.clear()
        asking.process.send_signal(SIGINT)
        await asking.wait_for_end()
        await asyncio.sleep(READ_S)
        film.above.clear()
        resuming = Command(film, environ, replaced)
        await film.type(film.above, "tailrace ask --resume")
        await resuming.run("ask", "--resume")
        await resuming.wait_for_end()
        found = await client.turn(turn)
    if (found["outcome"], found["text"]) != ("completed", markdown(QUESTION)):
        raise SystemExit(f"the answer is not complete: {found}")
    film.below.clear()
    film.below.write(f"\x1b[92m✓\x1b[0m one turn, {len(found['text'].split())} words: none is lost, none comes twice")
    film.take(is_forced=True)
    return film


async def find_running_turn(client: AsyncClient) -> str:
    """Returns the turn that runs, when it has begun."""
    async with asyncio.timeout(DEADLINE_S):
        while not (found := [one async for one in client.turns() if one["text"]]):  # noqa: ASYNC110  # another process writes
            await asyncio.sleep(POLL_S)
    turn: str = found[0]["turn"]
    return turn


async def wait_for_words(client: AsyncClient, turn: str, words: int) -> None:
    """Returns when the answer has so many words more."""
    before = len((await client.turn(turn))["text"].split())
    async with asyncio.timeout(DEADLINE_S):
        while len((await client.turn(turn))["text"].split()) < before + words:  # noqa: ASYNC110  # another process writes
            await asyncio.sleep(POLL_S)


async def output(environ: dict[str, str], *arguments: str) -> str:
    """Returns what a `tailrace` command prints."""
    command = (sys.executable, "-P", "-m", "tailrace", *arguments)
    process = await asyncio.create_subprocess_exec(*command, env=environ, stdout=PIPE)
    return (await process.communicate())[0].decode()


async def main() -> None:
    """Starts a system, records the film, and writes the picture."""
    argparse.ArgumentParser(prog="python -m tools.record_picture", description=__doc__).parse_args()
    (port,) = find_free(1)
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        inherited = {name: text for name, text in os.environ.items() if not OWN.match(name)}
        environ = inherited | {"PYTHONPATH": str(ROOT), "XDG_STATE_HOME": folder, "NO_PROXY": "127.0.0.1"}
        up = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "tailrace", "up", "--port", str(port), "--data", str(data)),
            env=environ,
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=DEVNULL,
            cwd=folder,
        )
        assert up.stdout is not None  # noqa: S101  # for mypy
        try:
            async with asyncio.timeout(DEADLINE_S):
                while not (await up.stdout.readline()).startswith(b"ready "):
                    pass
            draining = asyncio.create_task(up.stdout.read())
            film = await record(url, environ | {"TAILRACE_URL": url}, data)
        finally:
            up.send_signal(SIGTERM)
            await up.wait()
        await draining
    PICTURE.write_text(film.svg(), encoding="utf-8")
    print(f"{PICTURE.relative_to(ROOT)}: {film.now:.0f} s, {PICTURE.stat().st_size // 1000} kB")


if __name__ == "__main__":
    asyncio.run(main())
