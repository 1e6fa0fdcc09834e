"""The backend `vertex`: Claude on Google's Vertex AI. Makes each call once; retry.py repeats calls."""

import re
from urllib.parse import quote

import anthropic
import google.auth.exceptions
import httpx2

from tailrace.generators.backends import Call
from tailrace.generators.backends.anthropic_api import MessagesApi, encode_body, timeout
from tailrace.generators.backends.http_client import HttpClient
from tailrace.generators.settings import Settings
from tailrace.proto.errors import BackendError, SettingsInvalid
from tailrace.proto.models import find_model

# Vertex reads the API version from the body. A test compares this value with the SDK's.
API_VERSION = "2026-10-21"
# Vertex's own name of the version before it. Source: docs.anthropic.com/en/api/claude-on-vertex-ai.
VERSIONS = {"2023-06-01": "vertex-2023-10-16"}
DATED = re.compile(r"^(.*)-(20\d{6})$")


class Vertex(MessagesApi):
    """Region, project and credentials come from Google's environment variables, which the SDK reads."""

    provider = "gcp.vertex_ai"
    client: anthropic.AsyncAnthropicVertex

    def __init__(self, connect_timeout_s: float, stall_timeout_s: float) -> None:
        """Raises SettingsInvalid without a region or a project."""
        try:
            self.client = anthropic.AsyncAnthropicVertex(
                max_retries=0,
                timeout=timeout(connect_timeout_s, stall_timeout_s),
                http_client=HttpClient(),
            )
        except ValueError as error:
            raise SettingsInvalid("CLOUD_ML_REGION is not set: the backend vertex needs a region") from error
        if not self.client.project_id:
            raise SettingsInvalid(
                "ANTHROPIC_VERTEX_PROJECT_ID is not set: the backend vertex needs a Google Cloud project"
            )

    def model_id(self, model: str) -> str:
        """Returns `model` with its date after an @, as Google names models."""
        known = find_model(model)
        dated = (DATED.match(name) for name in (model, *(known.aliases if known else ())))
        return next((f"{match[1]}@{match[2]}" for match in dated if match), model)

    async def build_request(self, call: Call) -> tuple[str, list[bytes]]:
        """Returns the path, which names the model, and the body, which names the API version."""
        where = f"/projects/{self.client.project_id}/locations/{self.client.region}/publishers/anthropic/models"
        version = call.api_version or API_VERSION
        body = await encode_body(call, anthropic_version=VERSIONS.get(version, version), stream=True)
        return f"{where}/{quote(call.model, safe='@')}:streamRawPredict", body

    async def post(self, path: str, body: list[bytes], headers: dict[str, str]) -> httpx2.Response:
        """See MessagesApi.post. Maps the errors of google.auth, which authenticates the request."""
        try:
            return await super().post(path, body, headers)
        except google.auth.exceptions.GoogleAuthError as error:
            raise BackendError("backend_refused_key", "Google's credentials could not be loaded") from error


def backend(settings: Settings) -> Vertex:
    """Raises SettingsInvalid."""
    opened = Vertex(settings.connect_timeout_s, settings.stall_timeout_s)
    opened.pings_timeout_s = settings.pings_timeout_s
    return opened
