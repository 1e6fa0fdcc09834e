"""What every answer says to a browser: headers, the same on each. It knows no answer.

Models, clients and strangers say what they like, and a browser can be led to any URL of ours. What it finds there is
what its type says, and never guessed to be a page; runs nothing and fetches nothing, whatever stands in it; is shown in
nobody's frame; and tells nobody where it was.
"""

# `/docs` is the only page, with one style sheet inside it.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
HEADERS = (
    ("content-security-policy", POLICY),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
)
