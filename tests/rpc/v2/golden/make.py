"""Makes the golden files anew with Triton's own Python client: requests as it sends them, its fields' numbers.

Runs in an environment of its own that has tritonclient[grpc]; its stubs cannot be in one process with ours:

    python tests/rpc/v2/golden/make.py

A request is taken off the wire by a server that answers nothing useful. For each there is a file of its bytes,
NAME.bin, and what the client's own stubs read from them is in requests.json. fields.json has all messages' fields.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import ml_dtypes
import numpy as np
import tritonclient.grpc as client
from google.protobuf import descriptor_pb2, json_format
from tritonclient.grpc import model_config_pb2, service_pb2

HERE = Path(__file__).parent
ARRAYS = {
    "BOOL": np.array([[True, False, True]]),
    "UINT8": np.array([[0, 7, 255]], np.uint8),
    "UINT16": np.array([[0, 300, 65535]], np.uint16),
    "UINT32": np.array([[0, 70_000, 2**32 - 1]], np.uint32),
    "UINT64": np.array([[0, 1, 2**64 - 1]], np.uint64),
    "INT8": np.array([[-128, 0, 127]], np.int8),
    "INT16": np.array([[-32768, 0, 32767]], np.int16),
    "INT32": np.array([[-(2**31), 0, 2**31 - 1]], np.int32),
    "INT64": np.array([[-(2**63), 0, 2**63 - 1]], np.int64),
    "FP16": np.array([[-1.5, 0, 65504]], np.float16),
    "FP32": np.array([[-1.5, 0, 1e30]], np.float32),
    "FP64": np.array([[-1.5, 0, 1e300]], np.float64),
    "BF16": np.array([[-1.5, 0, 2.0]], ml_dtypes.bfloat16),
    "BYTES": np.array([[b"one", b"", b"three"]], np.object_),
}


class Recorder(grpc.GenericRpcHandler):
    """Takes the bytes of every ModelInfer request and answers with an empty response."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        def answer(message: bytes, context: Any) -> bytes:
            self.messages.append(message)
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)


def tensor(name: str, datatype: str, array: np.ndarray[Any, Any]) -> client.InferInput:
    made = client.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def placed(name: str, shape: list[int], datatype: str, region: str, size: int, offset: int = 0) -> client.InferInput:
    made = client.InferInput(name, shape, datatype)
    made.set_shared_memory(region, size, offset)
    return made


def into(name: str, region: str, size: int, offset: int = 0) -> client.InferRequestedOutput:
    made = client.InferRequestedOutput(name)
    made.set_shared_memory(region, size, offset)
    return made


def cases() -> dict[str, dict[str, Any]]:
    """Name -> arguments of `infer`."""
    floats = tensor("x", "FP32", ARRAYS["FP32"])
    found: dict[str, dict[str, Any]] = {
        f"datatype_{name.lower()}": {"inputs": [tensor("x", name, array)]} for name, array in ARRAYS.items()
    }
    found["plain"] = {"inputs": [floats]}
    found["with_id"] = {"inputs": [floats], "request_id": "frame-000001"}
    found["with_version"] = {"inputs": [floats], "model_version": "3", "request_id": "\u00e9\U0001f600"}
    found["two_inputs"] = {"inputs": [floats, tensor("y", "INT64", ARRAYS["INT64"])]}
    found["no_elements"] = {"inputs": [tensor("x", "FP32", np.zeros((0, 4), np.float32))]}
    found["outputs"] = {
        "inputs": [floats],
        "outputs": [client.InferRequestedOutput("a"), client.InferRequestedOutput("b", class_count=3)],
    }
    found["region_and_raw"] = {
        "inputs": [placed("x", [1, 3], "FP32", "in0", 12, 64), floats],
        "outputs": [into("a", "out0", 40), into("b", "out0", 40, 40)],
    }
    found["options"] = {"inputs": [floats], "timeout": 250_000, "priority": 1, "request_id": "7"}
    found["sequence"] = {"inputs": [floats], "sequence_id": 5, "sequence_start": True}
    found["sequence_text"] = {"inputs": [floats], "sequence_id": "five", "sequence_end": True}
    found["parameters"] = {"inputs": [floats], "parameters": {"mode": "fast", "level": 3, "exact": True}}
    return found


def typed() -> dict[str, service_pb2.ModelInferRequest]:
    """Requests with typed contents, which the client has no call for: written with its stubs."""
    fields = {
        "BOOL": "bool_contents",
        **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
        "INT64": "int64_contents",
        **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
        "UINT64": "uint64_contents",
        "FP32": "fp32_contents",
        "FP64": "fp64_contents",
    }
    found = {}
    for name, field in fields.items():
        made = service_pb2.ModelInferRequest(model_name="m", id="typed")
        one = made.inputs.add(name="x", datatype=name, shape=[1, 3])
        getattr(one.contents, field).extend(ARRAYS[name][0].tolist())
        found[f"typed_{name.lower()}"] = made
    return found


def numbers() -> dict[str, dict[str, str]]:
    """Message -> field -> number, label and type; enums have their values' numbers."""
    found: dict[str, dict[str, str]] = {}
    waiting = [message for file in FILES for message in file.message_types_by_name.values()]
    enums = [enum for file in FILES for enum in file.enum_types_by_name.values()]
    while waiting:
        message = waiting.pop()
        proto = descriptor_pb2.DescriptorProto()
        message.CopyToProto(proto)
        found[message.full_name] = {
            field.name: described(field, copy) for field, copy in zip(message.fields, proto.field, strict=True)
        }
        waiting += message.nested_types
        enums += message.enum_types
    for enum in enums:
        found[enum.full_name] = {value.name: str(value.number) for value in enum.values}
    for method in service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods:
        found.setdefault("rpcs", {})[method.name] = f"{method.input_type.full_name} {method.output_type.full_name}"
    return found


def described(field: Any, proto: descriptor_pb2.FieldDescriptorProto) -> str:
    kind = field.message_type or field.enum_type
    oneof = field.containing_oneof
    where = f" of {oneof.name}" if oneof is not None and not oneof.name.startswith("_") else ""
    many = "repeated " if proto.label == proto.LABEL_REPEATED else ""
    return f"{field.number} {many}{kind.full_name if kind else field.type}{where}"


FILES = (service_pb2.DESCRIPTOR, model_config_pb2.DESCRIPTOR)


def main() -> None:
    recorder = Recorder()
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((recorder,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    read: dict[str, Any] = {}
    messages: dict[str, bytes] = {}
    with client.InferenceServerClient(f"127.0.0.1:{port}") as connection:
        for name, arguments in cases().items():
            connection.infer("m", **arguments)
            messages[name] = recorder.messages[-1]
    server.stop(None).wait()
    messages |= {name: message.SerializeToString() for name, message in typed().items()}
    for old in HERE.glob("*.bin"):
        old.unlink()
    for name, message in messages.items():
        (HERE / f"{name}.bin").write_bytes(message)
        read[name] = json_format.MessageToDict(service_pb2.ModelInferRequest.FromString(message))
    for name, table in (("requests", read), ("fields", numbers())):
        (HERE / f"{name}.json").write_text(json.dumps(table, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
