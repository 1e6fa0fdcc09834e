"""The backend `bedrock`: Claude in Amazon Bedrock. Makes each call once; retry.py repeats calls.

Uses Bedrock's Messages API, which streams server-sent events. The older InvokeModel, which has its own framing and the
models up to Opus 4.6, is not supported.
"""

import anthropic
import botocore.exceptions
import httpx2

from tailrace.generators.backends.anthropic_api import MessagesApi, timeout
from tailrace.generators.backends.http_client import HttpClient
from tailrace.generators.settings import Settings
from tailrace.proto.errors import BackendError, SettingsInvalid
from tailrace.proto.models import find_model

# The message of the SDK's RuntimeError if botocore finds no credentials (anthropic/lib/aws/_auth.py).
NO_CREDENTIALS = "Could not resolve AWS credentials from session"


class Bedrock(MessagesApi):
    """Region, credentials and address come from AWS's environment variables, which the SDK reads."""

    provider = "aws.bedrock"
    client: anthropic.AsyncAnthropicBedrockMantle

    def __init__(self, connect_timeout_s: float, stall_timeout_s: float) -> None:
        """Raises SettingsInvalid without a region."""
        try:
            self.client = anthropic.AsyncAnthropicBedrockMantle(
                max_retries=0,
                timeout=timeout(connect_timeout_s, stall_timeout_s),
                http_client=HttpClient(),
            )
        except anthropic.AnthropicError as error:
            raise SettingsInvalid("AWS_REGION is not set: the backend bedrock needs a region") from error

    def model_id(self, model: str) -> str:
        """Returns `model` after the provider's name and without a date, as AWS names models."""
        known = find_model(model)
        return f"anthropic.{known.id if known is not None else model}"

    async def post(self, path: str, body: list[bytes], headers: dict[str, str]) -> httpx2.Response:
        """See MessagesApi.post. Maps the errors of botocore, which signs the request."""
        try:
            return await super().post(path, body, headers)
        except (botocore.exceptions.BotoCoreError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and str(error) != NO_CREDENTIALS:
                raise
            raise BackendError("backend_refused_key", "AWS's credentials could not be loaded") from error


def backend(settings: Settings) -> Bedrock:
    """Raises SettingsInvalid."""
    opened = Bedrock(settings.connect_timeout_s, settings.stall_timeout_s)
    opened.pings_timeout_s = settings.pings_timeout_s
    return opened
