"""Usage and statistics: the recorder adds each turn to the totals of the core in its transaction; queries read them."""
