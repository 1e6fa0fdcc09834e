"""Batches: the routes of Tailrace's own API, of OpenAI's and of Anthropic's, and OpenAI's files with the results."""

from tailrace.features.batches import anthropic_routes, native_routes, openai_routes
from tailrace.features.batches.deletion import BatchDeletion
from tailrace.features.batches.new_batch import BatchBuilder
from tailrace.features.batches.result_files import ResultFiles, wrap
from tailrace.gateway.feature import Feature, Parts
from tailrace.gateway.services import Gateway
from tailrace.proto.runtime.settings import NoSettings

ROUTES = [*native_routes.ROUTES, *openai_routes.ROUTES, *anthropic_routes.ROUTES]


def start(gateway: Gateway, _settings: NoSettings) -> Parts:
    """Makes the services of the routes, and the steps of batches in deletions."""
    builder = BatchBuilder(
        gateway.connection, gateway.catalogue, gateway.request_blobs, gateway.settings, gateway.submitter
    )
    files = ResultFiles(gateway.streams, gateway.blob_store)
    return Parts(services=(builder, files), deletion=BatchDeletion(gateway).steps)


FEATURE = Feature(NoSettings, start, routes=ROUTES, wrap=wrap)
