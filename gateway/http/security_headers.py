"""Security headers of every response.

Responses hold text of models and clients, and a browser can be sent to any URL. With these headers it does not guess
content types, runs and fetches nothing, shows nothing in frames, and sends no Referer.
"""

# `/docs` is the only page, with one style sheet inside it.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
HEADERS = (
    ("content-security-policy", POLICY),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
)
