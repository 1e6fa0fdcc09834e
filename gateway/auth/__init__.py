"""Authentication and authorization: API keys, JWTs, tickets, logins, scopes, CORS and allowed hosts."""
