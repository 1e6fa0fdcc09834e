"""Settings of the persistence process, read from environment variables."""

from typing import Annotated

from msgspec import Meta

from tailrace.proto.service import ProcessSettings

# A hundred years. Python has no date before the year 1.
DAYS_MAX = 36_500
SECONDS_MAX = DAYS_MAX * 86_400


class Settings(ProcessSettings, frozen=True, kw_only=True):
    """The defaults work on a laptop; `python -m tailrace.persistence --env` prints them."""

    database: Annotated[
        str,
        Meta(
            description="path of the SQLite file, on a local disk, created if it does not exist; or the URL of a "
            "database server: docs/POSTGRESQL.md"
        ),
    ] = ".tailrace/tailrace.db"
    batch_max: Annotated[int, Meta(ge=1, description="most entries that are recorded in one transaction")] = 100
    busy_timeout_s: Annotated[
        float, Meta(ge=0, description="how long a transaction waits while another program locks the database")
    ] = 5.0
    retry_wait_s: Annotated[
        float, Meta(gt=0, description="wait before a batch that could not be written is tried again")
    ] = 1.0
    session_idle_s: Annotated[
        float,
        Meta(gt=0, le=SECONDS_MAX, description="a session without a new turn for this time is no longer active"),
    ] = 24 * 3600.0
    catch_up_timeout_s: Annotated[
        float, Meta(gt=0, description="how long a query waits until the database has caught up with the log")
    ] = 3.0
