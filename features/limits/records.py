"""The query about a budget that persistence answers, and the webhook that a share of it is reached."""

from datetime import date, datetime
from typing import ClassVar

import msgspec

from tailrace.features.common.budgets import Budget, ReachedBudget
from tailrace.proto.records import Query

# The name of a tenant's counters; a key's names begin with `k_`.
TENANT = "tenant"


class BudgetState(msgspec.Struct, frozen=True):
    """What is spent of a budget, and the greatest of the query's shares that is reached; 0: none."""

    spent_nano_usd: int
    reached_percent: int


class CheckBudget(Query[BudgetState], frozen=True, kw_only=True):
    """Compares the usage of a key or a tenant with its budget. Stores a webhook for each share that is reached.

    Each share is reached once: `name`, `limit_nano_usd` and the share identify it.
    """

    query: ClassVar[str] = "check_budget"
    name: str
    """The subject of the counter of the budget, which names owner, budget and period."""
    budget: Budget
    key: str | None = None
    """The id of the credential whose budget this is; None: the tenant's, or that of requests without a key."""
    keys: list[str] | None = None
    """The ids of the credentials whose usage is counted; None: the usage of the tenant."""
    limit_nano_usd: int
    first: date
    last: date
    """The days of the period."""
    renews_at: datetime
    percents: list[int]
    """The shares, in percent of the budget."""
    is_refused: bool = False
    """Whether the budget has refused a turn: then all shares are reached."""


class BudgetWebhook(msgspec.Struct, frozen=True):
    """The body of the webhook, as Standard Webhooks defines it."""

    type: str
    """`budget.reached`."""
    timestamp: datetime
    """When it was noticed."""
    data: ReachedBudget
    """The budget."""
    links: dict[str, str]
    """Paths by name."""
