"""Browser logins: an API key is exchanged for a short access token and a refresh cookie."""
