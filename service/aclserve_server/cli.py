"""The command `aclserve`: `serve` runs the service, `model inspect` shows what a model file says of itself."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from aclserve.errors import AclserveError
from aclserve_server import allocator
from aclserve_server.acl.errors import AclError, LibraryError
from aclserve_server.config import Config, ConfigError, add_arguments
from aclserve_server.inspect import InspectError, describe_file, format_text
from aclserve_server.server import Addresses, Server

log = logging.getLogger(__name__)

EXIT_ERROR = 1
EXIT_USAGE = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line (default: the process's) and returns its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except ConfigError as error:
        for problem in error.problems:
            print(f"aclserve: {problem}", file=sys.stderr)
        return EXIT_USAGE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="aclserve", description="Models on Huawei Ascend NPUs, served over gRPC streams."
    )
    parser.add_argument("--version", action="version", version=f"aclserve {version('aclserve')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="run the service", allow_abbrev=False)
    add_arguments(serve)
    serve.set_defaults(run=_serve)
    model = commands.add_parser("model", help="work on model files").add_subparsers(required=True, metavar="COMMAND")
    inspect = model.add_parser("inspect", help="show what an OM or ONNX file says of itself")
    inspect.add_argument("file", type=Path, help="a .om or .onnx file")
    inspect.add_argument("--json", action="store_true", help="one JSON document instead of text")
    inspect.set_defaults(run=_inspect)
    return parser


def _inspect(arguments: argparse.Namespace) -> int:
    try:
        description = describe_file(arguments.file)
    except (InspectError, OSError) as error:
        print(f"aclserve: {error}", file=sys.stderr)
        return EXIT_ERROR
    print(description.to_json() if arguments.json else format_text(description))
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    config = Config.from_namespace(arguments, os.environ)
    logging.basicConfig(
        level=config.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_run(config))
    except (LibraryError, AclserveError, AclError, OSError) as error:
        print(f"aclserve: {error}", file=sys.stderr)
        return EXIT_ERROR
    return 0


async def _run(config: Config) -> None:
    """Serves until SIGTERM or Ctrl-C."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    server = Server(config)
    addresses = await server.start()
    allocator.tune()
    print(ready_line(config, addresses, server.library_path), flush=True)
    await stopping.wait()
    log.info("stopping: accepted items are answered first")
    await server.stop()


def ready_line(config: Config, addresses: Addresses, library: str) -> str:
    """What `serve` prints on standard output when it serves; scripts wait for it."""
    host = f"[{addresses.host}]" if ":" in addresses.host else addresses.host
    places = f"grpc={host}:{addresses.port} metrics={host}:{addresses.metrics_port}"
    return f"ready {places} device={config.device} acl={library}"


def _loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed: less CPU time for each message."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.Loop
