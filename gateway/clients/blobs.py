"""Route of blobs: long strings that are stored outside of the log."""

from starlette.types import ASGIApp

from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.history_client import HistoryClient
from tailrace.gateway.http.route import TURNS, Route
from tailrace.gateway.streaming.download import Download
from tailrace.gateway.streaming.reader import Reader, StreamContext
from tailrace.proto.blobs import Blob
from tailrace.proto.errors import BlobUnknown
from tailrace.proto.ids import is_token
from tailrace.proto.nats import BlobStore
from tailrace.proto.nats.blobs import UNKNOWN
from tailrace.proto.records import ListTurns

HEADERS = {
    "content-type": "application/octet-stream",
    "cache-control": "no-store",
    # A browser must not render content of a client as a page of this origin.
    "content-disposition": "attachment",
}


async def get(request: ApiRequest, blob_store: BlobStore, streams: StreamContext, history: HistoryClient) -> ASGIApp:
    """`GET /v1/blobs/{sha256}`: the string that a blob reference stands for, as UTF-8.

    A long string of a request, such as an image in base64, is stored once and replaced by a reference to it.
    """
    sha256 = request.path_params["sha256"]
    if not is_token(sha256):
        raise BlobUnknown(UNKNOWN)
    if not request.access.is_whole_tenant:
        # A blob has no owner: several users may have sent the same string.
        query = ListTurns(blob=sha256, limit=1)
        if not (await history.query(request.access, query)).turns:
            raise BlobUnknown(UNKNOWN)
    blob = Blob(sha256, await blob_store.size(request.access.tenant, sha256))
    return Download(Reader(streams, request), blob_store.chunks(request.access.tenant, blob), headers_of(blob))


def headers_of(blob: Blob) -> dict[str, str]:
    return {**HEADERS, "content-length": str(blob.bytes)}


ROUTES = [
    Route("GET", "/v1/blobs/{sha256}", get, "read", TURNS, streams="application/octet-stream"),
]
