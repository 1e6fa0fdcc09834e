"""The services of a gateway, which its endpoints receive by their types."""

from typing import NamedTuple

from tailrace.gateway.auth.admission import Admissions
from tailrace.gateway.auth.authenticate import Authenticator
from tailrace.gateway.auth.signed_tokens import TokenSigner
from tailrace.gateway.history_client import HistoryClient
from tailrace.gateway.http.read_body import BodyReader
from tailrace.gateway.log.fullness import LogFullness
from tailrace.gateway.log.health import LogHealth
from tailrace.gateway.models.catalogue import Catalogue
from tailrace.gateway.resources.health import HealthChecks
from tailrace.gateway.settings import Settings
from tailrace.gateway.streaming.reader import StreamContext
from tailrace.gateway.turns.delete import Deleter
from tailrace.gateway.turns.queue_estimate import QueueEstimate
from tailrace.gateway.turns.read_turn import TurnReader
from tailrace.gateway.turns.reader_presence import ReaderPresence
from tailrace.gateway.turns.respond import Responder
from tailrace.gateway.turns.store_blobs import RequestBlobs
from tailrace.gateway.turns.submit import TurnSubmitter
from tailrace.proto.nats import BlobStore, Claims, Connection, Rpc, TurnLog


class Gateway(NamedTuple):
    """The services of a gateway, each of its own type. Made once at startup."""

    settings: Settings
    connection: Connection
    rpc: Rpc
    log: TurnLog
    history: HistoryClient
    claims: Claims
    blob_store: BlobStore
    request_blobs: RequestBlobs
    admissions: Admissions
    log_fullness: LogFullness
    log_health: LogHealth
    queue_estimate: QueueEstimate
    authenticator: Authenticator
    signer: TokenSigner
    bodies: BodyReader
    catalogue: Catalogue
    streams: StreamContext
    turns: TurnReader
    submitter: TurnSubmitter
    responder: Responder
    deleter: Deleter
    presence: ReaderPresence
    health_checks: HealthChecks
