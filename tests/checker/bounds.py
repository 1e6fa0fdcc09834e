"""How long things may take in a run, and how much they may grow."""

import msgspec


class Bounds(msgspec.Struct, frozen=True):
    end_s: float = 60.0
    """From the last fault until every turn has its end. 0: who recorded them has waited for as long as he wanted."""
    cancel_s: float = 2.0
    """From a cancellation until its call is closed; from an end until nobody calls any more."""
    clock_s: float = 0.05
    """By how much the log's clock and ours may be apart."""
    rss_bytes_per_h: float = 1024.0**2
    rss_judged_after_s: float = 600.0
    """A process that has just started grows; a slope is judged over no less."""
    hedges: int = 0
    """How many calls more a turn may have where generators hedge (PROTOCOL R51): 1."""
    success: float = 0.999
    """Of what others ask while one asks too much."""
