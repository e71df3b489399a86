"""The command line client, `aclctl`. Exit codes: 0 done, 1 the service said no (or an item failed), 2 wrong usage."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from grpc import ChannelCredentials

from aclserve.errors import AclserveError, InvalidArgument
from aclserve_client import cli_commands as commands
from aclserve_client import cli_doctor, cli_top, cli_video
from aclserve_client.cli_inputs import add_shared_memory, shared_memory_mode
from aclserve_client.cli_output import Output, UsageError, error_lines
from aclserve_client.client import Client
from aclserve_client.data import ExecutionMode, MemoryAttribute, ResultOrder
from aclserve_client.options import DEFAULT_ADDRESS, Options, tls
from aclserve_client.stream_data import FramePolicy, Priority, StreamPreset

ADDRESS_VARIABLE = "ACLSERVE_ADDRESS"
TOKEN_VARIABLE = "ACLSERVE_TOKEN"  # noqa: S105 (a name)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code."""
    parser = build_parser()
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as stop:  # argparse has printed help (0) or what is wrong (2)
        return int(stop.code or 0)
    try:
        return _run(arguments)
    except UsageError as error:
        print(f"aclctl: {error}", file=sys.stderr)
        return 2
    except AclserveError as error:
        print(error_lines(error), file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output left; Python must not try to flush to it again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


def _run(arguments: argparse.Namespace) -> int:
    output = Output(as_json=arguments.json)
    with _client(arguments) as client:
        report = arguments.command(client, arguments, output)
    if report is not None:
        output.report(report)
    sys.stdout.flush()
    return 0 if report is None or report.ok else 1


def _client(arguments: argparse.Namespace) -> Client:
    try:
        options = Options(
            timeout=arguments.timeout,
            shared_memory=shared_memory_mode(arguments),
            credentials=_credentials(arguments),
            token=_token(arguments),
        )
        return Client(arguments.address, options)
    except InvalidArgument as error:
        raise UsageError(f"{error.message} ({error.reason})") from error


def _credentials(arguments: argparse.Namespace) -> ChannelCredentials | None:
    files = (arguments.tls_ca, arguments.tls_cert, arguments.tls_key)
    return tls(*files) if arguments.tls or any(files) else None


def _token(arguments: argparse.Namespace) -> str:
    if arguments.token_file is None:
        return os.environ.get(TOKEN_VARIABLE, "")
    try:
        token: str = arguments.token_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(
            f"--token-file: got {str(arguments.token_file)!r}, which cannot be read: {why}; name the file of a token"
        ) from error
    return token


def build_parser() -> argparse.ArgumentParser:
    """The whole command line. The general options may stand before or after the command."""
    general = _general()
    parser = argparse.ArgumentParser(prog="aclctl", description="Talk to an aclserve server.", parents=[_general()])
    parser.set_defaults(address=os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS, timeout=30.0, json=False)
    parser.set_defaults(tls=False, tls_ca=None, tls_cert=None, tls_key=None, token_file=None)
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return subparsers.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", parents=[general])

    add("devices", "show the server and its devices").set_defaults(command=commands.devices)
    doctor = add("doctor", "show what the server finds wrong with itself, and what to do; exit code 1 for errors")
    doctor.set_defaults(command=cli_doctor.doctor)
    doctor.add_argument("--all", action="store_true", help="also what is as it should be, and options at their default")
    _add_models(add("models", "list, describe, load and unload models"), general)
    infer = add("infer", "run one item")
    infer.set_defaults(command=commands.infer)
    _add_inputs(infer, "an input; NAME may be left out where the model has one")
    add_shared_memory(infer)
    infer.add_argument("--output-dir", type=Path, metavar="DIR", help="write each output to DIR/NAME.npy")
    stream = add("stream", "run many items over one stream, and measure")
    stream.set_defaults(command=commands.stream)
    _add_inputs(stream, "a stack of inputs; axis 0 counts the items (the rows, for a model that batches)")
    stream.add_argument("--repeat", type=positive_number, default=1, metavar="N", help="send the stack N times (1)")
    stream.add_argument(
        "--items", type=positive_number, default=1000, metavar="N", help="items made by the server (1000)"
    )
    stream.add_argument("--pack", type=positive_number, default=8, metavar="N", help="most items in one message (8)")
    _add_behaviour(stream)
    add_shared_memory(stream)
    top = add("top", "watch streams, models and memory live until q; with --json, one document in each line")
    top.set_defaults(command=cli_top.top)
    top.add_argument(
        "--interval", type=seconds, default=1.0, metavar="SECONDS", help="between two reports, at least 0.1 (1)"
    )
    top.add_argument("--count", type=positive_number, metavar="N", help="end after N reports")
    top.add_argument("--once", action="store_true", help="end after one report (as --count 1)")
    cli_video.add_arguments(add("video", "run a model over videos and cameras"))
    _add_memory(add("memory", "show and test the memory of the device"), general)
    return parser


def _general() -> argparse.ArgumentParser:
    """The options of every command, without defaults, so that those after a command do not undo those before it."""
    general = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    group = general.add_argument_group("general options")
    group.add_argument(
        "--address",
        metavar="ADDRESS",
        help=f"the server, HOST:PORT or unix:PATH; several, with commas, stand in for each other "
        f"(environment: {ADDRESS_VARIABLE}; {DEFAULT_ADDRESS})",
    )
    group.add_argument("--timeout", type=seconds, metavar="SECONDS", help="for each call; 'none' for no limit (30)")
    group.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    group.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help=f"holds the token to show (environment: {TOKEN_VARIABLE}, the token itself)",
    )
    group.add_argument("--tls", action="store_true", help="TLS, with the authorities that the system trusts")
    group.add_argument("--tls-ca", type=Path, metavar="FILE", help="TLS, with these authorities (PEM)")
    group.add_argument("--tls-cert", type=Path, metavar="FILE", help="TLS, with this client certificate (PEM)")
    group.add_argument("--tls-key", type=Path, metavar="FILE", help="the client certificate's private key (PEM)")
    return general


def _add_models(parser: argparse.ArgumentParser, general: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=commands.list_models)
    actions = parser.add_subparsers(title="actions", metavar="ACTION")
    add = actions.add_parser
    listing = add("list", help="list all models (without an action, too)", parents=[general])
    listing.set_defaults(command=commands.list_models)
    for name, text, command in (
        ("describe", "describe one loaded model", commands.describe_model),
        ("load", "load a model of the repository, or a file", commands.load_model),
        ("unload", "unload a model", commands.unload_model),
    ):
        action = add(name, help=text, parents=[general])
        action.set_defaults(command=command)
        action.add_argument("model", metavar="NAME")
        _add_version(action)
        if name == "load":
            action.add_argument("--file", type=Path, metavar="PATH", help="upload this file and serve it as NAME")
            modes = [mode.value for mode in ExecutionMode if mode is not ExecutionMode.UNSPECIFIED]
            action.add_argument("--execution-mode", choices=modes, default=ExecutionMode.UNSPECIFIED)


def _add_version(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model-version", type=whole_number, default=0, metavar="N", help="the version (the highest one that is ready)"
    )


def _add_inputs(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("model", metavar="MODEL")
    _add_version(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", action="append", metavar="[NAME=]FILE.npy", help=text)
    source.add_argument("--zeros", action="store_true", help="inputs of zeros, made by the server")
    source.add_argument("--random", action="store_true", help="random inputs, made by the server")
    parser.add_argument("--seed", type=whole_number, default=0, metavar="N", help="for --random (0)")
    parser.add_argument(
        "--rows", type=positive_number, default=1, metavar="N", help="rows of an item, for batching models (1)"
    )
    parser.add_argument(
        "--shape",
        type=named_shape,
        action="append",
        default=[],
        metavar="NAME=D,D,...",
        help="an input's shape, for --zeros and --random where more than the rows vary",
    )


def _add_behaviour(parser: argparse.ArgumentParser) -> None:
    """How a stream behaves."""
    parser.add_argument(
        "--window", type=whole_number, default=0, metavar="N", help="most items unanswered (the server's)"
    )
    for name, choices, text in (
        ("preset", StreamPreset, "settings that go together; options beside it win"),
        ("policy", FramePolicy, "what to do with items that come too fast (wait)"),
        ("order", ResultOrder, "of the results (completion)"),
        ("priority", Priority, "against other streams (normal)"),
    ):
        known = [choice.value for choice in choices if choice.value != "unspecified"]
        parser.add_argument(f"--{name}", choices=known, default="unspecified", help=text)
    parser.add_argument("--max-age", type=seconds, metavar="SECONDS", help="drop items that waited longer (no limit)")
    parser.add_argument(
        "--resume", action="store_true", help="go on when the server goes away or is lost, at the next address"
    )


def _add_memory(parser: argparse.ArgumentParser, general: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    info = actions.add_parser("info", help="show free and total memory by attribute", parents=[general])
    info.set_defaults(command=commands.memory_info)
    attributes = [item.value for item in MemoryAttribute if item is not MemoryAttribute.UNSPECIFIED]
    info.add_argument(
        "--attribute",
        action="append",
        default=[],
        choices=attributes,
        metavar="NAME",
        help=f"only this one, may be repeated: {', '.join(attributes)}",
    )
    test = actions.add_parser(
        "test", help="take bytes through allocate, write, all four copies, read and free", parents=[general]
    )
    test.set_defaults(command=commands.memory_test)
    test.add_argument(
        "--size-bytes", type=positive_number, default=1 << 20, metavar="N", help="of each buffer (1048576)"
    )
    test.add_argument("--seed", type=whole_number, default=0, metavar="N", help="of the bytes (0)")


def whole_number(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is below 0")
    return value


def positive_number(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value


def seconds(text: str) -> float | None:
    if text == "none":
        return None
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def named_shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, separator, dims = text.rpartition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=D,D,...")
    return name, tuple(int(dim) for dim in dims.split(",") if dim)


if __name__ == "__main__":
    sys.exit(main())
