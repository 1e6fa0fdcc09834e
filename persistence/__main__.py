"""`python -m tailrace.persistence`: runs a persistence process with every feature."""

import sys
from functools import partial

from tailrace.features.persistence import FEATURES, Settings
from tailrace.persistence import serve as persistence
from tailrace.proto import service

preflight = partial(persistence.preflight, features=FEATURES)
serve = partial(persistence.serve, features=FEATURES)
probe = partial(persistence.probe, features=FEATURES)

if __name__ == "__main__":
    about = "Records turns and answers queries."
    sys.exit(service.main("persistence", about, Settings, preflight, serve, probe))
