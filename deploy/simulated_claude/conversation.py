"""The question in a request's messages, and the partial answer that it continues.

There are three forms of a continuation: for models up to 4.5, the last message is the assistant's partial text
(prefill); for later models a user message follows, which says where the answer was interrupted; and for all models a
paused answer is sent back unchanged.
"""

import hashlib
import re
from collections.abc import Sequence
from functools import cached_property

import msgspec

from tailrace.deploy.simulated_claude.request import Message

# Claude Code adds reminders to a user's message, in text blocks of their own.
REMINDER = re.compile(r"\s*<system-reminder>.*</system-reminder>\s*", re.DOTALL)
INTERRUPTED = "Your previous response was interrupted"
QUESTION_CHARS = 100_000
# A question that the simulated Claude refuses to answer.
REFUSED = re.compile(r"^[ \t]*#sim\b.*\brefuse=", re.MULTILINE)
MISFIT = "Your answer does not fit the JSON Schema"


class Conversation(msgspec.Struct, frozen=True, dict=True):
    """The messages of a request, without the tail that asks for a continuation."""

    messages: tuple[Message, ...]  # without the continuation's tail
    partial: str  # the text of the partial answer; empty for a new answer
    paired: frozenset[str] = frozenset()
    """The ids of the calls of server tools in the partial answer that have a result."""
    other_types: tuple[str, ...] = ()
    """The types of the partial answer's blocks that are neither text nor calls nor results."""
    pending: str = ""
    """The id of the call of a server tool that waits for its result; empty without one."""

    @property
    def pairs(self) -> int:
        """The calls of server tools in the partial answer that have a result."""
        return len(self.paired)

    @property
    def is_continued(self) -> bool:
        """Whether the messages end with a partial answer that has content."""
        return bool(self.partial or self.paired or self.pending or self.other_types)

    @cached_property
    def question(self) -> str:
        """The text of the last user message with text other than reminders; a tool's result has none.

        The middle of a very long text is left out, so that it delays no other answer.
        """
        questions = (extract_text(message) for message in reversed(self.messages) if message.role == "user")
        text = next((text for text in questions if text and not (text.isspace() or text.startswith(MISFIT))), "")
        return text if len(text) <= 2 * QUESTION_CHARS else f"{text[:QUESTION_CHARS]}\n{text[-QUESTION_CHARS:]}"

    @property
    def is_corrected(self) -> bool:
        """Whether the last message says that the previous answer did not fit the schema."""
        return self.messages[-1].text.startswith(MISFIT)

    @property
    def has_tool_result(self) -> bool:
        return self.messages[-1].has_tool_result

    @property
    def files_sha256(self) -> str:
        """SHA-256 of the base64 of all pictures and documents: proves that every byte arrived."""
        files = hashlib.sha256()
        for data in (data for message in self.messages for data in message.files):
            files.update(data.encode())
        return files.hexdigest()

    @cached_property
    def key(self) -> str:
        """40 characters, equal for all calls of one turn; turns with the same messages share it."""
        spoken = [(message.role, message.text, message.has_tool_result) for message in self.messages]
        return hashlib.sha256(msgspec.json.encode(spoken)).hexdigest()[:40]


def has_refused_question(conversation: Conversation) -> bool:
    """Returns whether a message before the question was refused.

    Anthropic's page "Handle streaming refusals": refusals go on until the turn is removed.
    """
    asked = [text for one in conversation.messages if one.role == "user" and (text := extract_text(one))]
    return any(REFUSED.search(text) for text in asked[:-1])


def extract_text(message: Message) -> str:
    """Returns the text of a message, without blocks that are only a reminder."""
    if isinstance(message.content, str):
        return message.content
    texts = (block.text for block in message.content if block.type == "text")
    return "\n".join(text for text in texts if REMINDER.fullmatch(text) is None)


def read(messages: Sequence[Message]) -> Conversation:
    """Splits `messages` (not empty, the first one is the user's) into conversation and partial answer.

    As in the API, consecutive messages of the assistant count as one.
    """
    end = len(messages)
    if messages[-1].role == "user" and messages[-1].text.startswith(INTERRUPTED):
        end -= 1
    start = end
    while start > 1 and messages[start - 1].role == "assistant":
        start -= 1
    if start == end:
        return Conversation(tuple(messages), "")
    partial = messages[start:end]
    blocks = [block for message in partial for block in message.blocks]
    results = {block.tool_use_id for block in blocks if block.tool_use_id}
    calls = [block.id for block in blocks if block.is_server_call]
    pending = next((call for call in calls if call not in results), "")
    return Conversation(
        tuple(messages[:start]),
        "".join(message.text for message in partial),
        frozenset(results.intersection(calls)),
        tuple(one.type for one in blocks if one.type != "text" and not one.tool_use_id and "tool_use" not in one.type),
        pending,
    )
