"""Checks the model key once, when a generator starts, with a free request for the list of models."""

from typing import Protocol

import structlog

from tailrace.generators.rpc import ModelApi
from tailrace.proto.errors import BackendError

logger = structlog.get_logger()

REFUSED = "the model's API refused the key when this generator started: check ANTHROPIC_API_KEY, and restart"


class Reporter(Protocol):
    detail: str


async def check_key(api: ModelApi, reporter: Reporter) -> None:
    """Sets `reporter.detail` if the key is refused. Other failures say nothing about the key."""
    try:
        await api.models()
    except BackendError as error:
        if error.code == "backend_refused_key":
            reporter.detail = REFUSED
        else:
            logger.info("the model key could not be checked", code=error.code)
