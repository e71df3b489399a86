"""`python -m aclserve_server` is the command `aclserve`."""

import sys

from aclserve_server.cli import main

sys.exit(main())
