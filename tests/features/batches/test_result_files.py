"""Result files of batches among the uploaded files, and their size."""

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from starlette.types import Message

from tailrace.features.batches.result_files import HANDLERS, ResultFiles, rendered_size, wrap
from tailrace.features.gateway import ROUTES
from tailrace.gateway.http.route import Route, Section
from tailrace.proto.errors import Refused
from tests.unit.test_download import build_reader

BATCH = "01a1f9d6-8530-7bc1-86ec-13a54c14ea1a"


async def test_a_route_of_one_file_refuses_to_delete_results_and_passes_other_ids_on() -> None:
    async def delete(request: Any, history: str) -> str:
        return f"{history}: {request.path_params['file_id']}"

    route = Route("DELETE", "/v1/files/{file_id}", delete, "manage", Section("files"))
    wrapped = wrap(route).endpoint
    services: dict[str, Any] = {"history": "deleted", "result_files": ResultFiles(cast("Any", None), cast("Any", None))}
    # Services are given by the types of the parameters.
    assert wrapped.__annotations__ == {**delete.__annotations__, "result_files": ResultFiles}
    for name in (f"file-{BATCH}", f"file-{BATCH}-other", "output"):
        assert await wrapped(SimpleNamespace(path_params={"file_id": name}), **services) == f"deleted: {name}"
    for kind in ("output", "error"):
        with pytest.raises(Refused, match="deleted with its turn"):
            await wrapped(SimpleNamespace(path_params={"file_id": f"file-{BATCH}-{kind}"}), **services)


def test_every_route_of_one_file_has_the_result_files() -> None:
    """A route that is added to `/v1/files/{file_id}` would not know the ids that batches show."""
    of_one_file = {(one.method, one.path) for one in ROUTES if one.path.startswith("/v1/files/{file_id}")}
    assert of_one_file == HANDLERS.keys()


async def test_the_size_of_results_is_not_computed_any_further_for_a_client_that_has_disconnected() -> None:
    is_rendering = asyncio.Event()

    async def pieces() -> AsyncGenerator[bytes, None]:
        while True:
            await asyncio.sleep(0)
            is_rendering.set()
            yield b"x"

    async def receive() -> Message:
        await is_rendering.wait()
        return {"type": "http.disconnect"}

    with pytest.raises(Refused):
        await asyncio.wait_for(rendered_size(build_reader(), receive, pieces()), 5)
