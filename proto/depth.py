"""How deep JSON may nest in what Tailrace stores and tells (PROTOCOL R7). It looks at values, never at bytes."""

LEVELS_MAX = 64


def is_deeper(value: object, levels: int) -> bool:
    """Whether lists and objects stand in one another more than `levels` times. Looks no further than that itself."""
    if not isinstance(value, list | dict):
        return False
    return levels == 0 or any(is_deeper(v, levels - 1) for v in (value.values() if isinstance(value, dict) else value))
