"""Readable Markdown answers; the same question always gets the same text."""

import hashlib
import re
from collections.abc import Sequence

OPENINGS = (
    "Here is how I would think about it.",
    "Good question. A short answer first, then the reasons.",
    "There is more than one way to see this; these points matter most.",
)
POINTS = (
    "**Start with what is stored.** What everybody can read again, nobody has to remember.",
    "**Write it down once.** Two copies of a fact will differ one day, and it will be a Sunday.",
    "**Number what you send.** A reader who knows the last number can come back and ask for the next.",
    "**Expect the interruption.** Connections end; the interesting part is what happens afterwards.",
    "**Measure before you tune.** The slow part is seldom where it was expected to be.",
    "**Keep the decision pure.** A function without a clock can be tested without waiting.",
)
SNIPPETS = (
    "def resume(log, cursor):\n    return [entry for entry in log if entry.seq > cursor]",
    'text = "".join(delta for delta in deltas)\nassert text == whole_answer',
    "async for entry in follow(turn, after=cursor):\n    print(entry)",
)
FUNCTION = """\
def merge(first, second):
    merged = []
    while first and second:
        merged.append((first if first[0] <= second[0] else second).pop(0))
    return merged + first + second


def test_merge():
    assert merge([1, 4], [2, 3]) == [1, 2, 3, 4]"""
TABLE = """\
| what fails | what the reader sees |
|---|---|
| the browser | the answer so far, and then the rest |
| the server | nothing: another one continues |"""
CLOSINGS = (
    "If you tell me more about your case, I can be more specific.",
    "That is the core of it; the rest is detail.",
    "Try it with something small first, then pull the plug and see what is left.",
)
TOPIC_WORDS_MAX = 10
DELTA = re.compile(r"\s*\S+|\s+\Z")


def markdown(question: str) -> str:
    """Returns about 100 words: a heading, an opening, a list, and some code.

    A question about a function gets a function, and a question about a table gets a table.
    """
    seed = hashlib.sha256(question.encode(errors="replace")).digest()
    first, second, third = (POINTS[(seed[0] + step) % len(POINTS)] for step in (0, 1, 2))
    table = f"{TABLE}\n\n" if "table" in question.lower() else ""
    code = FUNCTION if "function" in question.lower() else pick(SNIPPETS, seed[2])
    return (
        f"## {topic(question)}\n\n"
        f"{pick(OPENINGS, seed[1])} I am a simulated Claude, so take the form and not the substance.\n\n"
        f"- {first}\n- {second}\n- {third}\n\n"
        f"{table}"
        f"In code, the heart of it is small:\n\n"
        f"```python\n{code}\n```\n\n"
        f"{pick(CLOSINGS, seed[3])}"
    )


def deltas(text: str) -> list[str]:
    """Splits `text` into words, each with the white space before it. The joined words are `text`."""
    return DELTA.findall(text)


def topic(question: str) -> str:
    """Returns the beginning of the question, up to the first comma or the end of a sentence, for a heading."""
    words = re.sub(r"[#*`>_\[\]]", " ", re.split(r"(?<=\?)\s|[,.;:!](?:\s|$)", question.strip(), maxsplit=1)[0]).split()
    more = "\N{HORIZONTAL ELLIPSIS}" if len(words) > TOPIC_WORDS_MAX else ""
    return " ".join(words[:TOPIC_WORDS_MAX]) + more or "Hello"


def pick(choices: Sequence[str], number: int) -> str:
    return choices[number % len(choices)]
