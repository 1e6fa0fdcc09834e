"""What a request's messages ask for: a question, and how much of its answer is there already; it never answers.

The API goes on from a partial answer in two forms: up to the 4.5 models the last message is the assistant's partial
text (prefill); for later ones the partial text is followed by a user message that says where it broke off.
"""

import hashlib
import re
from collections.abc import Sequence

import msgspec

from tailrace.deploy.simulated_claude.request import Message

# What Claude Code adds to what a person says, as a text block of its own.
REMINDER = re.compile(r"\s*<system-reminder>.*</system-reminder>\s*", re.DOTALL)
INTERRUPTED = "Your previous response was interrupted and ended with"
MISFIT = "Your answer does not fit the JSON Schema"


class Conversation(msgspec.Struct, frozen=True):
    messages: tuple[Message, ...]  # without the continuation's tail
    partial: str  # what there is of the answer already; empty when it is asked for afresh

    @property
    def question(self) -> str:
        """The text of the last user message that has any: a tool's result has none, and a reminder asks nothing."""
        asked = (asked_in(message) for message in reversed(self.messages) if message.role == "user")
        return next((text for text in asked if text.strip() and not text.startswith(MISFIT)), "")

    @property
    def is_corrected(self) -> bool:
        """Whether it was told that its last answer did not fit."""
        return self.messages[-1].text.startswith(MISFIT)

    @property
    def has_tool_result(self) -> bool:
        return self.messages[-1].has_tool_result

    @property
    def files_sha256(self) -> str:
        """Of the base64 of all pictures and documents, one after the other: who has it was sent every byte."""
        files = hashlib.sha256()
        for data in (data for message in self.messages for data in message.files):
            files.update(data.encode())
        return files.hexdigest()

    @property
    def key(self) -> str:
        """The same for every call of one turn, in 40 characters; two turns that ask the very same share it."""
        spoken = [(message.role, message.text, message.has_tool_result) for message in self.messages]
        return hashlib.sha256(msgspec.json.encode(spoken)).hexdigest()[:40]


def asked_in(message: Message) -> str:
    """Its text, without blocks that are nothing but a client's reminder."""
    if isinstance(message.content, str):
        return message.content
    texts = (block.text for block in message.content if block.type == "text")
    return "".join(text for text in texts if REMINDER.fullmatch(text) is None)


def read(messages: Sequence[Message]) -> Conversation:
    """`messages` (not empty, first the user's), split into the conversation and the partial answer."""
    match [message.role for message in messages]:
        case [*_, _, "assistant"]:
            return Conversation(tuple(messages[:-1]), messages[-1].text)
        case [*_, _, "assistant", "user"] if messages[-1].text.startswith(INTERRUPTED):
            return Conversation(tuple(messages[:-2]), messages[-2].text)
    return Conversation(tuple(messages), "")
