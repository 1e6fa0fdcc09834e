"""Endpoints of Amazon Bedrock and Google Vertex AI in front of the simulated Claude.

Both clouds speak Anthropic's protocol under other paths, model names and credentials. These endpoints check the path,
the model name and the signature or token as the cloud does, and forward the request to the simulated Claude.
"""

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import botocore.auth
import botocore.awsrequest
import botocore.credentials
import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tailrace.deploy.simulated_claude.server import EmbeddedServer, run_embedded

AWS_KEY, AWS_SECRET, AWS_REGION = "AKIDTESTTESTTESTTEST", "a-secret-of-nobody", "eu-central-1"
GOOGLE_PROJECT, GOOGLE_REGION, GOOGLE_TOKEN = "project-of-nobody", "europe-west1", "ya29.of-nobody"
VERTEX = re.compile(
    rf"/v1/projects/{GOOGLE_PROJECT}/locations/{GOOGLE_REGION}/publishers/anthropic/models/([^/:]+):streamRawPredict"
)
FAULT = re.compile(rb" fault=[^ \\\"]+")


class ReceivedRequest(msgspec.Struct, frozen=True):
    """A request as the endpoint received it."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


class CloudEndpoints:
    """An ASGI app that checks each request and forwards it to `behind`. `is_kind` removes `fault=` directives."""

    def __init__(self, behind: ASGIApp, *, is_kind: bool) -> None:
        self._behind = behind
        self._is_kind = is_kind
        self.received: list[ReceivedRequest] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path.startswith("/_sim/"):
            await self._behind(scope, receive, send)
            return
        request = Request(scope, receive)
        raw = await request.body()
        if path == "/token":
            await JSONResponse({"access_token": GOOGLE_TOKEN, "expires_in": 3600})(scope, receive, send)
            return
        self.received.append(ReceivedRequest(path, dict(request.headers), msgspec.json.decode(raw)))
        body = translate_bedrock(request, raw) if path.startswith("/anthropic/") else translate_vertex(request, raw)
        if body is None:
            refusal = {"error": {"code": 403, "message": "Permission denied", "status": "PERMISSION_DENIED"}}
            await JSONResponse(refusal, status_code=403)(scope, receive, send)
            return
        forwarded = msgspec.json.encode(body)
        await self._forward(scope, receive, send, FAULT.sub(b"", forwarded) if self._is_kind else forwarded)

    async def _forward(self, scope: Scope, receive: Receive, send: Send, body: bytes) -> None:
        others = [pair for pair in scope["headers"] if pair[0] != b"content-length"]
        headers = [*others, (b"content-length", str(len(body)).encode())]
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_changed() -> Message:
            return waiting.pop() if waiting else await receive()

        inside = {**scope, "path": "/v1/messages", "raw_path": b"/v1/messages", "headers": headers}
        await self._behind(inside, receive_changed, send)


def translate_bedrock(request: Request, raw: bytes) -> dict[str, Any] | None:
    """Returns the body for Anthropic's API, or None if AWS would refuse the request."""
    if request.url.path != "/anthropic/v1/messages" or not is_signed(request, raw):
        return None
    body: dict[str, Any] = msgspec.json.decode(raw)
    provider, _, model = body["model"].rpartition("anthropic.")
    return body | {"model": model} if model and provider in ("", "eu.") else None


def is_signed(request: Request, raw: bytes) -> bool:
    """Whether the signature is the one that AWS's own library makes (Signature Version 4)."""
    found = re.fullmatch(
        rf"AWS4-HMAC-SHA256 Credential={AWS_KEY}/\d{{8}}/{AWS_REGION}/bedrock-mantle/aws4_request, "
        r"SignedHeaders=([a-z0-9;-]+), Signature=([0-9a-f]{64})",
        request.headers.get("authorization", ""),
    )
    if found is None:
        return False
    signed = {name: request.headers[name] for name in found[1].split(";")}
    signed_request = botocore.awsrequest.AWSRequest(method="POST", url=str(request.url), headers=signed, data=raw)
    signed_request.context["timestamp"] = request.headers["x-amz-date"]
    credentials = botocore.credentials.Credentials(AWS_KEY, AWS_SECRET)
    signer = botocore.auth.SigV4Auth(credentials, "bedrock-mantle", AWS_REGION)
    wanted: str = signer.signature(
        signer.string_to_sign(signed_request, signer.canonical_request(signed_request)), signed_request
    )
    return wanted == found[2]


def translate_vertex(request: Request, raw: bytes) -> dict[str, Any] | None:
    """Returns the body for Anthropic's API, or None if Google would refuse the request."""
    body: dict[str, Any] = msgspec.json.decode(raw)
    found = VERTEX.fullmatch(request.url.path)
    if found is None or request.headers.get("authorization") != f"Bearer {GOOGLE_TOKEN}" or "model" in body:
        return None
    del body["anthropic_version"]
    return body | {"model": found[1].replace("@", "-")}


class Cloud(msgspec.Struct, frozen=True):
    """A running endpoint: its URL, the requests it received, and the environment of a client."""

    url: str
    received: list[ReceivedRequest]
    environ: Mapping[str, str]


@asynccontextmanager
async def running_cloud(folder: Path, *, is_kind: bool = False) -> AsyncIterator[Cloud]:
    server = EmbeddedServer("127.0.0.1", 0)
    endpoints = CloudEndpoints(server.config.app, is_kind=is_kind)  # type: ignore[arg-type]
    server.config.app = endpoints
    async with run_embedded(server) as url:
        yield Cloud(url, endpoints.received, environ(url, folder))


def environ(url: str, folder: Path) -> dict[str, str]:
    """Returns the environment variables that the clouds' libraries read."""
    account = folder / "account.json"
    account.write_bytes(msgspec.json.encode(service_account(url)))
    return {
        "AWS_REGION": AWS_REGION,
        "AWS_ACCESS_KEY_ID": AWS_KEY,
        "AWS_SECRET_ACCESS_KEY": AWS_SECRET,
        "AWS_EC2_METADATA_DISABLED": "true",
        "ANTHROPIC_BEDROCK_MANTLE_BASE_URL": f"{url}/anthropic",
        "CLOUD_ML_REGION": GOOGLE_REGION,
        "ANTHROPIC_VERTEX_PROJECT_ID": GOOGLE_PROJECT,
        "ANTHROPIC_VERTEX_BASE_URL": f"{url}/v1",
        "GOOGLE_APPLICATION_CREDENTIALS": str(account),
    }


def service_account(url: str) -> dict[str, str]:
    """Returns a service account with a new private key; its token endpoint is `/token` of this server."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return {
        "type": "service_account",
        "project_id": GOOGLE_PROJECT,
        "client_email": "nobody@example.com",
        "private_key": pem.decode(),
        "token_uri": f"{url}/token",
    }
