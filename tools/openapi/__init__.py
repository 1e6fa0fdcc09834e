"""The OpenAPI document of the gateway's routes, which `make schema` writes."""
