"""`python -m tailrace.persistence`: the process that records turns, answers queries and sends webhooks."""

import sys

from tailrace.persistence.serve import preflight, probe, serve
from tailrace.persistence.settings import Settings
from tailrace.proto import service

if __name__ == "__main__":
    sys.exit(service.main("persistence", "Records turns and answers queries.", Settings, preflight, serve, probe))
