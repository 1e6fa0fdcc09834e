"""`python -m tailrace.generators`: runs a generator until SIGTERM."""

import gc

# Garbage collection during the imports took 0.3 s of CPU, a fifth of the start, and freed nothing: modules stay.
gc.disable()

import sys

from tailrace.generators.serve import preflight, probe, serve
from tailrace.generators.settings import Settings
from tailrace.proto import service

gc.freeze()
gc.enable()

if __name__ == "__main__":
    sys.exit(service.main("generators", "Calls the model and stores its answers.", Settings, preflight, serve, probe))
