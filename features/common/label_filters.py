"""Query parameters that select turns by their labels."""

from starlette.requests import Request

from tailrace.gateway.http.parameters import OF_USER
from tailrace.gateway.http.query_parameters import METADATA
from tailrace.gateway.http.route import Parameter, query


def _query_object(name: str, description: str) -> Parameter:
    """Returns a parameter of the query that is an object of strings: `name[field]=value` (style `deepObject`)."""
    parameter = query(name, description, type="object", additionalProperties={"type": "string"})
    return parameter._replace(documented=parameter.documented | {"style": "deepObject", "explode": True})


OF_LABELS = (
    OF_USER,
    query("model", "Only turns of this model."),
    query("key", "Only turns of the API key with this id."),
    _query_object("metadata", "Only turns with these fields: `metadata[team]=search`."),
)


def metadata_of(request: Request) -> dict[str, str]:
    """Returns the parameters `metadata[NAME]=VALUE`, each as `metadata.NAME`."""
    given = request.query_params
    return {f"metadata.{found[1]}": value for name, value in given.items() if (found := METADATA.fullmatch(name))}
