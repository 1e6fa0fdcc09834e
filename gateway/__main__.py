"""`python -m tailrace.gateway`: runs a gateway with every feature."""

import sys
from functools import partial

from tailrace.features.gateway import FEATURES, Settings
from tailrace.gateway import serve as gateway
from tailrace.proto import service

ABOUT = "Serves HTTP: stores requests in the log, and streams turns to clients."

preflight = partial(gateway.preflight, features=FEATURES)
serve = partial(gateway.serve, features=FEATURES)
probe = partial(gateway.probe, features=FEATURES)

if __name__ == "__main__":
    sys.exit(service.main("gateway", ABOUT, Settings, preflight, serve, probe, gateway.meanwhile))
