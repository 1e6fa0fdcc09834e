"""What persistence can be told by its environment."""

from pathlib import Path
from typing import Annotated

from msgspec import Meta

from tailrace.proto.runtime.main import ProcessSettings


class Settings(ProcessSettings, frozen=True, kw_only=True):
    """Defaults work on a laptop; `python -m tailrace.persistence --env` prints this table."""

    database: Annotated[Path, Meta(description="the SQLite file; made when it is not there, on a local disk")] = Path(
        ".tailrace/tailrace.db"
    )
    batch_max: Annotated[int, Meta(ge=1, description="entries that are recorded in one transaction")] = 100
    busy_timeout_s: Annotated[
        float, Meta(ge=0, description="how long a transaction waits for another program that holds the database")
    ] = 5.0
    retry_wait_s: Annotated[
        float, Meta(gt=0, description="wait before a batch is tried again that could not be written")
    ] = 1.0
    session_idle_s: Annotated[
        float, Meta(gt=0, description="how long a session that is left alone counts as active; its next turn opens it")
    ] = 24 * 3600.0
    catch_up_timeout_s: Annotated[
        float, Meta(gt=0, description="how long a query waits until all that was acknowledged is in the database")
    ] = 3.0
    webhook_key: Annotated[
        str,
        Meta(
            description="what tenants' signing secrets are made of, 32 characters or more; none: no webhooks are sent. "
            "Several joined by commas while one takes another's place: all sign"
        ),
    ] = ""
    webhook_urls: Annotated[
        str, Meta(description="TENANT=URL, several joined by commas: who is told of turns that name no webhook")
    ] = ""
    webhook_private_hosts: Annotated[
        str, Meta(description="hosts, joined by commas, whose webhooks may go to private addresses and by plain http")
    ] = ""
    webhook_timeout_s: Annotated[float, Meta(gt=0, description="how long a webhook's receiver may take to answer")] = (
        15.0
    )
    webhook_wait_s: Annotated[
        float, Meta(gt=0, description="wait before a webhook is tried again; doubles, up to an hour, with jitter")
    ] = 5.0
    webhook_give_up_s: Annotated[
        float, Meta(gt=0, description="age of a turn's end from which its webhook is not tried again")
    ] = 24 * 3600.0
