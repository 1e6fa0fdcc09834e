"""Authentication and authorization: API keys, JWTs, logins, scopes, CORS and allowed hosts."""
