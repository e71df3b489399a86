"""The command `aclserve`: `serve` runs the service, `doctor` tells what is wrong with it or with the machine, `plan`
simulates it, `model inspect` shows what a model file says of itself.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from aclserve.errors import AclserveError
from aclserve_server import allocator, logs
from aclserve_server.access.directory import FileError, entry, make_token
from aclserve_server.access.principal import GROUPS
from aclserve_server.acl.errors import AclError, LibraryError
from aclserve_server.config import Config, ConfigError, add_arguments, options
from aclserve_server.device.faults import is_device_fatal
from aclserve_server.doctor import probe
from aclserve_server.doctor.checkup import Checkup
from aclserve_server.doctor.host import this_host
from aclserve_server.doctor.settings import options_given, request_for
from aclserve_server.inspect import InspectError, describe_file, format_text
from aclserve_server.options import origins
from aclserve_server.plan.command import add_commands as add_plan_commands
from aclserve_server.profiling import Profiler
from aclserve_server.rpc.model_config import read_model_config
from aclserve_server.rpc.ports import Certificates
from aclserve_server.server import Addresses, Server
from aclserve_server.supervisor.supervisor import Supervisor

log = logging.getLogger(__name__)

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_DEVICE_LOST = 69
"""The device failed or hangs: whoever watches the process starts another (EX_UNAVAILABLE of sysexits.h)."""

PROBE_S = 30.0
"""How long the doctor waits for each call of the library; the first opening of a device takes seconds."""

MAX_PROBE_S = 3600.0

LOST_EXIT_S = 15.0
"""How long after the loss of its device a process may last at the most."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line (default: the process's) and returns its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        code = int(arguments.run(arguments))
        sys.stdout.flush()
        return code
    except ConfigError as error:
        for problem in error.problems:
            print(f"aclserve: {problem}", file=sys.stderr)
        return EXIT_USAGE
    except BrokenPipeError:  # the reader of our output left; Python must not try to flush to it again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="aclserve", description="Models on Huawei Ascend NPUs, served over gRPC streams."
    )
    parser.add_argument("--version", action="version", version=f"aclserve {version('aclserve')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="run the service", allow_abbrev=False)
    add_arguments(serve)
    serve.set_defaults(run=_serve)
    doctor = commands.add_parser(
        "doctor", help="look at machine, library, device, options and models, and say what to do", allow_abbrev=False
    )
    doctor.add_argument("--json", action="store_true", help="one JSON document instead of text")
    doctor.add_argument("--no-device", action="store_true", help="ask the library, but open no device")
    doctor.add_argument(
        "--timeout-s",
        type=_patience,
        default=PROBE_S,
        metavar="N",
        help="time for each call of the library (%(default)s)",
    )
    add_arguments(doctor.add_argument_group("options of serve, as they are to be used"))
    doctor.set_defaults(run=_doctor)
    token = commands.add_parser("token", help="make a token, and what the file of --principals says of it")
    token.add_argument("name", help="the principal who gets it")
    token.add_argument("--group", action="append", choices=GROUPS, default=[], help="to grant; may be repeated (infer)")
    token.set_defaults(run=_token)
    model = commands.add_parser("model", help="work on model files").add_subparsers(required=True, metavar="COMMAND")
    inspect = model.add_parser("inspect", help="show what an OM or ONNX file says of itself")
    inspect.add_argument("file", type=Path, help="a .om or .onnx file")
    inspect.add_argument("--json", action="store_true", help="one JSON document instead of text")
    inspect.set_defaults(run=_inspect)
    add_plan_commands(commands.add_parser("plan", help="find out by simulation what a fleet can do"))
    return parser


def _patience(text: str) -> float:
    value = float(text)
    if not 0 < value <= MAX_PROBE_S:
        raise argparse.ArgumentTypeError(f"got {text}, expected more than 0 and at most {MAX_PROBE_S:g} seconds")
    return value


def _token(arguments: argparse.Namespace) -> int:
    """Prints the file's part on standard output, to be appended, and the token, which is shown this once, beside it."""
    token = make_token()
    try:
        text = entry(arguments.name, token, arguments.group or ["infer"])
    except FileError as error:
        print(f"aclserve: {error}", file=sys.stderr)
        return EXIT_USAGE
    print(f"# the token of {arguments.name}; it is shown only now: {token}", file=sys.stderr)
    print(text)
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    try:
        description = describe_file(arguments.file)
    except (InspectError, OSError) as error:
        print(f"aclserve: {error}", file=sys.stderr)
        return EXIT_ERROR
    print(description.to_json() if arguments.json else format_text(description))
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    """Looks, prints and changes nothing; the device is opened in another process. 1 where there are errors."""
    given = options_given(arguments, os.environ)

    def ask(device: int) -> probe.Outcome:
        request = request_for(given, device, open_device=not arguments.no_device)
        return probe.run(request, os.environ, arguments.timeout_s)

    checkup = Checkup(
        version("aclserve"),
        this_host(os.environ),
        given,
        ask,
        read_model_config,
        Certificates,
    )
    diagnosis = checkup.run().read(publicly=False)
    print(diagnosis.to_json() if arguments.json else diagnosis.to_text())
    return 0 if diagnosis.healthy else EXIT_ERROR


class Alone:
    """What a server's process does besides serving, where nobody started it to watch it."""

    def __init__(self, sources: Mapping[str, str]) -> None:
        """`sources`: where each option's value comes from, by name."""
        self._sources = sources

    def make_server(self, config: Config) -> Server:
        """The server to run."""
        return Server(config, sources=self._sources)

    async def begin(self, server: Server, stop: Callable[[], None]) -> None:
        """Before the server starts; `stop` makes it end in order. On its event loop."""

    def ready(self, server: Server, addresses: Addresses) -> None:
        """When it serves."""
        print(ready_line(server.config, addresses, server.library_path), flush=True)

    def fail(self, error: Exception) -> None:
        """Tells the operator why it ends."""
        print(f"aclserve: {error}", file=sys.stderr)

    async def end(self) -> None:
        """When it has stopped, or could not start."""


def _serve(arguments: argparse.Namespace) -> int:
    config = Config.from_namespace(arguments, os.environ)
    logs.configure(config.log_level, config.log_format)
    if config.devices:
        return _supervise(config)
    return serve_device(config, Alone(origins(options(), arguments, os.environ)))


def _supervise(config: Config) -> int:
    try:
        return asyncio.run(Supervisor(config).run())
    except OSError as error:
        print(f"aclserve: {error}", file=sys.stderr)
        return EXIT_ERROR


def serve_device(config: Config, life: Alone) -> int:
    """Serves one device until the end of this process; its exit code."""
    try:
        profiler = _profiler(config.profile)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(_run(config, profiler, life))
    except (LibraryError, AclserveError, AclError, OSError) as error:
        life.fail(error)
        lost = is_device_fatal(error) if isinstance(error, AclError) else getattr(error, "reason", "") == "DEVICE_LOST"
        return EXIT_DEVICE_LOST if lost else EXIT_ERROR


def _profiler(file: str) -> Profiler | None:
    """The profiler that was asked for; ConfigError where its library is missing, OSError for a wrong file."""
    try:
        return Profiler(Path(file)) if file else None
    except ImportError as error:
        raise ConfigError(
            [f"--profile: got {file!r}, but pyinstrument is not installed: pip install 'aclserve[profile]'"]
        ) from error


async def _run(config: Config, profiler: Profiler | None, life: Alone) -> int:
    """Serves until SIGTERM, Ctrl-C or the loss of the device; the exit code.

    A profile is of the time from ready to the end of the drain.
    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    server = life.make_server(config)
    server.surrender.tell(lambda error: stopping.set())
    server.surrender.tell(lambda error: _end_in_any_case())
    await life.begin(server, stopping.set)
    try:
        return await _live(server, stopping, profiler, life)
    finally:
        await life.end()


async def _live(server: Server, stopping: asyncio.Event, profiler: Profiler | None, life: Alone) -> int:
    addresses = await server.start()
    allocator.tune()
    allocator.calm_collector()
    allocator.share_interpreter()
    life.ready(server, addresses)
    if profiler is not None:
        profiler.start()
    await stopping.wait()
    log.info("stopping: accepted items are answered first")
    try:
        if server.surrender.loss.hung:
            await server.abandon()
            _leave()
        await server.stop()
    finally:
        if profiler is not None:
            profiler.stop()
    return EXIT_DEVICE_LOST if server.surrender.lost.is_set() else 0


def _end_in_any_case() -> None:
    """The device is lost, and so is perhaps whatever still calls it: the process ends in time all the same."""
    timer = threading.Timer(LOST_EXIT_S, _leave)
    timer.daemon = True
    timer.start()


def _leave() -> None:
    """Ends the process at once, without a word to the device."""
    logging.shutdown()
    with suppress(OSError, ValueError):  # a disk that is full must not keep a lost process alive
        sys.stdout.flush()
    os._exit(EXIT_DEVICE_LOST)


def ready_line(config: Config, addresses: Addresses, library: str) -> str:
    """What `serve` prints on standard output when it serves; scripts wait for it."""
    host = f"[{addresses.host}]" if ":" in addresses.host else addresses.host
    places = f"grpc={host}:{addresses.port} metrics={host}:{addresses.metrics_port}"
    if addresses.unix_socket:
        places += f" unix={addresses.unix_socket}"
    return f"ready {places} device={config.device} acl={library}"


def _loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed: less CPU time for each message."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.Loop
