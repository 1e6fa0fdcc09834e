"""A gateway without the feature that has limits counts, reserves and refuses nothing."""

import pytest

from tailrace.gateway.auth.admission import Admissions
from tailrace.gateway.auth.limits import UNLIMITED
from tailrace.gateway.auth.principal import Principal
from tailrace.proto.errors import Refused
from tailrace.proto.ids import Tenant
from tailrace.proto.ownership import WHOLE, Scope

TENANT = Tenant("ours")
# A key that an operator has given limits, which a gateway with the feature would apply.
LIMITED = Principal(Scope(TENANT, WHOLE), "key", limits={"requests": 1, "streams": 1, "bytes_day": 1})


async def test_without_the_feature_nothing_is_limited() -> None:
    admissions = Admissions()
    for _ in range(3):
        async with admissions.count(LIMITED, 10**12) as admission:
            assert admission is None
    with pytest.raises(Refused, match="why"):
        async with admissions.open(LIMITED):
            raise Refused("session_exists", "why")
    limiter = admissions.limiter
    assert (limiter.slots_of(LIMITED), limiter.effective_limits({"requests": 1})) == (None, UNLIMITED)
    for share in (limiter.log_share, limiter.blob_share):
        share.add(TENANT, 10**12)
        share.check(TENANT, 10**12)
