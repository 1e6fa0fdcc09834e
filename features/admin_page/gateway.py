"""The page `/admin`. It is static and public; all that it shows comes from routes that need the scope `admin`."""

from starlette.requests import Request
from starlette.responses import Response

from tailrace.features.common.page_file import html_page, kept_file
from tailrace.gateway.feature import Feature, Parts
from tailrace.gateway.http.route import OPERATION, Route
from tailrace.proto.runtime.settings import NoSettings

PAGE, PACKAGE = "/admin", "tailrace.features.admin_page"


async def page(_: Request) -> Response:
    """`GET /admin`: a page for operators: spend, tenants, keys, limits and the audit log. Its script asks for a key.

    The page holds no data, and works without external resources.
    """
    return html_page(PACKAGE, "page.html", PAGE)


async def script(request: Request) -> Response:
    """`GET /admin/page.js`: the page's script."""
    return kept_file(request, PACKAGE, "page.js")


async def style(request: Request) -> Response:
    """`GET /admin/page.css`: the page's style sheet."""
    return kept_file(request, PACKAGE, "page.css")


ROUTES = [
    Route("GET", PAGE, page, "public", OPERATION, streams="text/html"),
    Route("GET", f"{PAGE}/page.js", script, "public", OPERATION, streams="text/javascript"),
    Route("GET", f"{PAGE}/page.css", style, "public", OPERATION, streams="text/css"),
]
FEATURE = Feature(NoSettings, lambda _gateway, _settings: Parts(), routes=ROUTES)
