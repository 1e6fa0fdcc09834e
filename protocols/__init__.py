"""Client protocols of other APIs, one folder each: routes, request parser and stream renderer."""
