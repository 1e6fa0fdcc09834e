"""The API reference: routes for the OpenAPI document, and for an HTML page that is made of it."""
