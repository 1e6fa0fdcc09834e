"""Settings of JWTs: the keys that verify them, and the claims that are read."""

from typing import Annotated

import msgspec
from msgspec import Meta


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of JWTs. Without a key, none is accepted."""

    jwt_secret: Annotated[
        str, Meta(description="secret of JWTs that are signed with HS256; empty: none are accepted")
    ] = ""
    jwt_keys: Annotated[
        str, Meta(description="URL or file of the JWKS for JWTs that are signed with RS256 or ES256")
    ] = ""
    jwt_issuer: Annotated[str, Meta(description="`iss` that a JWT must have")] = ""
    jwt_audience: Annotated[str, Meta(description="`aud` that a JWT must have")] = ""
    jwt_tenant_claim: Annotated[str, Meta(min_length=1, description="claim that holds the tenant")] = "sub"
    jwt_user_claim: Annotated[
        str, Meta(description="claim that holds the user of every turn; empty: the request's body names the user")
    ] = "sub"
    jwt_scopes_claim: Annotated[
        str,
        Meta(
            description="claim that lists scopes (write, read, manage, operate); empty: a JWT has the first three",
        ),
    ] = ""
