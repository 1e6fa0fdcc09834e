"""`python -m deploy` is the `tailrace` command; it holds no code of its own."""

import sys

from deploy.cli import main

sys.exit(main())
