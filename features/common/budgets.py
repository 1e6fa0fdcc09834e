"""Reached shares of budgets: features/limits notes them, and features/admin lists them."""

from datetime import datetime
from typing import ClassVar, Literal

import msgspec

from tailrace.proto.ids import Tenant
from tailrace.proto.records import Query

Budget = Literal["usd_day", "usd_month"]


class ReachedBudget(msgspec.Struct, frozen=True, kw_only=True):
    """A budget of which a share is reached. Costs are in dollars."""

    tenant: Tenant
    """The tenant."""
    of: Literal["key", "tenant"]
    """Whose budget it is."""
    key: str | None
    """The id of the key; null: the budget of the tenant, or of requests without a key."""
    budget: Budget
    """The name of the limit."""
    percent: int
    """The share that is reached, in percent."""
    limit_usd: float
    """The budget."""
    spent_usd: float
    """The cost of the turns that had ended in the period when the share was noted."""
    is_refused: bool
    """Whether the budget has refused a turn: what it may have cost was more than the rest."""
    renews_at: datetime
    """When the next period begins."""


class ReachedBudgets(msgspec.Struct, frozen=True):
    """The newest reached budgets of all tenants, each with its greatest share."""

    budgets: list[ReachedBudget]


class ListReachedBudgets(Query[ReachedBudgets], frozen=True):
    """The budgets of all tenants of which a share is reached in the current period; for operators.

    It does not wait until the turns of all tenants are recorded.
    """

    query: ClassVar[str] = "reached_budgets"
