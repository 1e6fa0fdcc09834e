"""The step of a submission that counts the request for its limits, and reserves what the turn may use."""

from contextlib import AsyncExitStack

from tailrace.gateway.auth.api_request import HeaderSource
from tailrace.gateway.auth.principal import Principal
from tailrace.gateway.limits.limiter import Admission, Limiter
from tailrace.gateway.limits.rate_headers import rate_headers


async def count_request(
    limiter: Limiter, principal: Principal, response_headers: list[HeaderSource], reserved: AsyncExitStack
) -> Admission | None:
    """Counts the request. Returns its admission; None if no limit can apply.

    `reserved` gives back what the admission counts and reserves. The response gets the rate-limit headers, also if it
    is an error. Raises Refused, LogUnavailable.
    """
    if not limiter.has_limits(principal):
        return None
    admission = limiter.admission(principal)
    response_headers.append(lambda path: rate_headers(path, admission.quota_rests.values(), limiter.now()))
    reserved.push_async_callback(admission.release)
    await admission.count_request()
    return admission
