"""Tailrace: streams of Claude's answers that survive the death of any process.

The five packages lie at the top of the repository; the links in this folder put them under one import name.
"""

import sys

if sys.platform == "win32":
    # Windows lacks uvloop, inherited sockets, process groups and file locks of this kind.
    raise ImportError("Tailrace runs on Linux and macOS. On Windows, install it in WSL 2.")
