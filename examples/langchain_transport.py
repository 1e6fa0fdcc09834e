"""LangChain's `ChatAnthropic` whose streamed answers go on after a cut, or when their gateway dies.

It needs `pip install langchain-anthropic`, Tailrace's client, and Tailrace at http://localhost:8000. `ChatAnthropic`
has no parameter for an HTTP client, so the subclass makes the client of its SDK. docs/PYTHON.md has `ChatOpenAI`.
"""

from functools import cached_property

import anthropic
from langchain_anthropic import ChatAnthropic

from tailrace import AsyncResumingTransport, ResumingTransport


class ResumingChatAnthropic(ChatAnthropic):
    @cached_property
    def _client(self) -> anthropic.Anthropic:
        http = anthropic.DefaultHttpxClient(transport=ResumingTransport())
        return anthropic.Anthropic(**self._client_params, http_client=http)

    @cached_property
    def _async_client(self) -> anthropic.AsyncAnthropic:
        http = anthropic.DefaultAsyncHttpxClient(transport=AsyncResumingTransport())
        return anthropic.AsyncAnthropic(**self._client_params, http_client=http)


if __name__ == "__main__":
    model = ResumingChatAnthropic(base_url="http://localhost:8000", api_key="my-secret-key", model="claude-sonnet-5-5")
    for chunk in model.stream("Name a river."):
        print(chunk.text, end="", flush=True)
