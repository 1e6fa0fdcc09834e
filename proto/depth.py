"""The maximum nesting depth of JSON that Tailrace stores and sends (PROTOCOL R7)."""

LEVELS_MAX = 64


def is_deeper(value: object, levels: int) -> bool:
    """Returns whether lists and objects in `value` are nested more than `levels` deep. Looks no deeper than that."""
    if not isinstance(value, list | dict):
        return False
    return levels == 0 or any(is_deeper(v, levels - 1) for v in (value.values() if isinstance(value, dict) else value))
