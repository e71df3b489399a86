"""The command `aclserve`, also as `python -m aclserve_server`."""

from __future__ import annotations

import os
import sys

from aclserve_server.polling import poll_directly


def main() -> int:
    """Runs this process's command line; its exit code."""
    poll_directly(os.environ)
    from aclserve_server import cli  # imports gRPC, which looks at the environment then

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
