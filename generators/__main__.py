"""`python -m tailrace.generators`: runs a generator with every feature, until SIGTERM."""

import gc

# Garbage collection during the imports took 0.3 s of CPU, a fifth of the start, and freed nothing: modules stay.
gc.disable()

import sys
from functools import partial

from tailrace.features.backends import Settings
from tailrace.features.generators import FEATURES
from tailrace.generators import serve as generator
from tailrace.proto import service

gc.freeze()
gc.enable()

ABOUT = "Calls the model and stores its answers."

preflight = partial(generator.preflight, features=FEATURES)
probe = partial(generator.probe, features=FEATURES)
serve = partial(generator.serve, features=FEATURES)

if __name__ == "__main__":
    sys.exit(service.main("generators", ABOUT, Settings, preflight, serve, probe))
