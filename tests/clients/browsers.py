"""The browser in which tests open pages."""

import shutil

from tests.clients import node


def find_browser() -> str | None:
    """Returns the path of Chromium, or None.

    Its headless shell is the same engine without the windows of a desktop, and takes half of the CPU time.
    """
    return shutil.which("chromium-headless-shell") or node.chromium()
