"""Security headers of every response.

Responses hold text of models and clients, and a browser can be sent to any URL. With these headers the browser does not
guess content types, runs and fetches nothing, shows nothing in frames, and sends no Referer.
"""

CSP = b"content-security-policy"
# The page `/docs` has its style sheet inside of it.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
HEADERS = (
    (CSP.decode(), POLICY),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
)
# Pages load their scripts, style sheets, values and icon from this server. The page `/` shows the pictures that its
# user has attached (`blob:`), and text of models as Markdown: only what DOMPurify has sanitised becomes markup.
OWN = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob:; "
NOWHERE = "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
TRUSTED_TYPES = "require-trusted-types-for 'script'; trusted-types dompurify; "
TURN_PAGES, GUIDES = "/turns/", "/guides"
PAGE_POLICIES = {
    "/": (OWN + TRUSTED_TYPES + NOWHERE).encode(),
    TURN_PAGES: (OWN + TRUSTED_TYPES + NOWHERE).encode(),
    "/ops": (OWN + NOWHERE).encode(),
    "/admin": (OWN + "require-trusted-types-for 'script'; trusted-types 'none'; " + NOWHERE).encode(),
    "/docs": f"{POLICY}; img-src 'self'".encode(),
    # The guides have a search form.
    GUIDES: f"{POLICY}; img-src 'self'".replace("form-action 'none'", "form-action 'self'").encode(),
}


def add_page_policy(path: str, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Returns `headers` with the policy of the page at `path`. A browser obeys all policies of a response at once."""
    policy = PAGE_POLICIES.get(next((pages for pages in (TURN_PAGES, GUIDES) if path.startswith(pages)), path))
    if policy is None:
        return headers
    return [*(header for header in headers if header[0] != CSP), (CSP, policy)]
