"""A route of the API in one row: its method, path, endpoint, scope, parameters, body and result.

The guard of the route, the refusal of unknown query parameters, the OpenAPI document and the tests of access are made
of these rows. Descriptions come from the endpoints' docstrings, and schemas from the Structs.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import msgspec

from tailrace.gateway.http.refusal_events import RenderRefusal
from tailrace.gateway.http.scope import ScopeName

Json = dict[str, Any]

Need = ScopeName | Literal["public"]
"""`public`: the route needs no credential."""

SSE = "text/event-stream"
JSON_LINES = "application/x-ndjson"


class Parameter(NamedTuple):
    """A parameter of the query or a header."""

    place: Literal["query", "header"]
    name: str
    documented: Json
    """The parameter's further keys in the OpenAPI document."""
    is_spelling: bool = False
    """Whether it is a second spelling of another parameter. The document leaves it out: generated clients would give
    both the same name."""


def query(name: str, description: str, **schema: Any) -> Parameter:
    """Returns a parameter of the query, a string unless `schema` says otherwise."""
    return Parameter("query", name, {"description": description, "schema": {"type": "string"} | schema})


def header(name: str, description: str, **schema: Any) -> Parameter:
    """Returns a header, a string unless `schema` says otherwise."""
    return Parameter("header", name, {"description": description, "schema": {"type": "string"} | schema})


def required(parameter: Parameter) -> Parameter:
    """Returns the same parameter as a required one."""
    return parameter._replace(documented=parameter.documented | {"required": True})


class Section(NamedTuple):
    """A section of the OpenAPI document."""

    tag: str
    reference: str = ""
    """The URL of the protocol's own reference, for the routes of another protocol."""


TURNS, SESSIONS, PROJECTS = Section("turns"), Section("sessions"), Section("projects")
MODELS, LOGIN, ADMIN, OPERATION = Section("models"), Section("login"), Section("admin"), Section("operation")


class Route(msgspec.Struct, frozen=True):
    """A route. Its endpoint receives the request, and for each further parameter the service of that type.

    A route for GET also answers HEAD.
    """

    method: str
    path: str
    endpoint: Callable[..., Any]
    need: Need
    """The scope that a request needs."""
    section: Section
    body: Any = None
    """The Struct of the JSON body."""
    form: Json | None = None
    """The schema of the body, if it is a form with a file."""
    result: Any = None
    """The Struct of the JSON response; without a Struct, an example of the response."""
    status: int = 200
    streams: str = ""
    """The media type of a streamed response."""
    events: Any = None
    """The types of the events of a stream, or the name of the dialect that renders them."""
    parameters: tuple[Parameter, ...] = ()
    statuses: Mapping[int, str] = {}
    """Further statuses that are not errors, with their descriptions."""
    render_refusal: RenderRefusal | None = None
    """Renders a refusal for clients that read the body of a stream without looking at the status."""
    cookie: str = ""
    """The name of the cookie that is the credential instead of a key."""

    @property
    def query_names(self) -> frozenset[str]:
        """The names of the query parameters. A request with any other name is refused."""
        return frozenset(one.name for one in self.parameters if one.place == "query")
