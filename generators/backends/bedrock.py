"""Claude in Amazon Bedrock: the same events, behind AWS's address, credentials and names; it never tries twice.

This is Bedrock's Messages API, which streams server-sent events. The older InvokeModel, with frames of AWS's own,
serves the models up to Opus 4.6 and is not spoken here.
"""

import anthropic
import botocore.exceptions
import httpx2

from tailrace.generators.backends.anthropic_api import Messages, timeout
from tailrace.generators.settings import Settings
from tailrace.proto.errors import BackendError, SettingsInvalid


class Bedrock(Messages):
    """The backend `bedrock`. Region, credentials and address come from AWS's own variables, as the SDK reads them."""

    client: anthropic.AsyncAnthropicBedrockMantle

    def __init__(self, connect_timeout_s: float, stall_timeout_s: float) -> None:
        """Raises SettingsInvalid without a region."""
        try:
            self.client = anthropic.AsyncAnthropicBedrockMantle(
                max_retries=0,
                timeout=timeout(connect_timeout_s, stall_timeout_s),
                http_client=anthropic.DefaultAioHttpClient(),
            )
        except anthropic.AnthropicError as error:
            raise SettingsInvalid("AWS_REGION is not set: the backend bedrock needs to know its region") from error

    def model_id(self, model: str) -> str:
        """AWS's docs: the provider's name stands before the model's."""
        return f"anthropic.{model}"

    async def post(self, path: str, body: bytes, headers: dict[str, str]) -> httpx2.Response:
        """What signs the request is AWS's library, with exceptions of its own."""
        try:
            return await super().post(path, body, headers)
        except (botocore.exceptions.BotoCoreError, RuntimeError) as error:
            raise BackendError("backend_refused_key", "AWS's credentials could not be loaded") from error


def backend(settings: Settings) -> Bedrock:
    """Raises SettingsInvalid."""
    return Bedrock(settings.connect_timeout_s, settings.stall_timeout_s)
