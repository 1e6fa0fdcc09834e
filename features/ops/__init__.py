"""The page `/ops`: the panels of all processes, over a short history of their metrics or over a Prometheus."""
