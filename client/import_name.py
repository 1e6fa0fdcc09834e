"""The module `tailrace` of the client alone. The client's modules lie in `tailrace_client/client`.

Python prefers the package `tailrace/` of the server in the same folder, which has its own copy of the client. So the
two distributions have no file in common, and each can be installed and removed without the other.
"""

from pathlib import Path

__path__ = [str(Path(__file__).with_name("tailrace_client"))]

from tailrace.client import *  # noqa: F403
from tailrace.client import __all__  # noqa: F401
