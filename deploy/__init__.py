"""The command line, the supervisor of local processes, the simulated Claude, and files for deployments.

No other package imports this one.
"""
