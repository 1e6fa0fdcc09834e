from tailrace.client import *  # noqa: F403
from tailrace.client import __all__ as __all__
