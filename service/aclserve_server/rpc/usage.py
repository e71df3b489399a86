"""How to call a model by hand: commands and programs to copy, made from a sample request for it.

They name the server `ADDRESS`, which is the only thing to replace: a server does not know by which name it is reached.
"""

from __future__ import annotations

import json
import shlex

from aclserve.tensors import DTYPES
from aclserve.v1 import model_pb2 as pb
from aclserve.v1 import tensor_pb2
from aclserve_server.rpc.v2.datatypes import datatype_of

ADDRESS = "localhost:8001"

_METHOD = "aclserve.v1.ModelService"
_CALLS = "--total=200 --concurrency=4"
_YOURS = "# zeros stand for your data"


def usage_of(sample: pb.InferRequest, sample_json: str) -> pb.ModelUsage:
    """The ways to send a sample request, which is given in protobuf's JSON form too."""
    data = shlex.quote(sample_json)
    plain = " --disable-template-data" if "{{" in sample_json else ""
    return pb.ModelUsage(
        grpcurl=f"grpcurl -plaintext -d {data} {ADDRESS} {_METHOD}/Infer",
        ghz=f"ghz --insecure --call={_METHOD}.Infer {_CALLS}{plain} --data={data} {ADDRESS}",
        python=_python(sample),
        python_v2=_python_v2(sample),
    )


def _python(sample: pb.InferRequest) -> str:
    imports = "Client"
    inputs = []
    for tensor in sample.inputs:
        if tensor.data_type == tensor_pb2.DATA_TYPE_BFLOAT16:
            imports = "Client, Typed"
            value = f'Typed({_zeros(tensor, "np.uint16")}, "bfloat16"),  # the bits of each bfloat16'
        else:
            value = _zeros(tensor, _numpy_name(tensor)) + ","
        inputs.append(f"    {_literal(tensor.name)}: {value}")
    version = f", version={sample.version}" if sample.version else ""
    return "\n".join(
        [
            "import numpy as np",
            "",
            f"from aclserve_client import {imports}",
            "",
            f"inputs = {{  {_YOURS}",
            *inputs,
            "}",
            f'with Client("{ADDRESS}") as client:',
            f"    result = client.infer({_literal(sample.model)}, inputs{version})",
            "for name, array in result.outputs.items():",
            "    print(name, array.dtype, array.shape)",
            "",
        ]
    )


def _python_v2(sample: pb.InferRequest) -> str:
    imports, lines = ["import numpy as np"], []
    for tensor in sample.inputs:
        name, datatype = _literal(tensor.name), datatype_of(DTYPES[tensor.data_type])
        dtype = _numpy_name(tensor)
        if datatype == "BF16":
            imports, dtype = ["import ml_dtypes", "import numpy as np"], "ml_dtypes.bfloat16"
        lines += [
            f'tensor = grpcclient.InferInput({name}, {list(tensor.shape)}, "{datatype}")',
            f"tensor.set_data_from_numpy({_zeros(tensor, dtype)})",
            "inputs.append(tensor)",
        ]
    version = f', model_version="{sample.version}"' if sample.version else ""
    return "\n".join(
        [
            *imports,
            "import tritonclient.grpc as grpcclient",
            "",
            f"inputs = []  {_YOURS}",
            *lines,
            f'with grpcclient.InferenceServerClient("{ADDRESS}") as client:',
            f"    result = client.infer({_literal(sample.model)}, inputs{version})",
            "for output in result.get_response().outputs:",
            "    print(output.name, output.datatype, result.as_numpy(output.name).shape)",
            "",
        ]
    )


def _zeros(tensor: tensor_pb2.Tensor, dtype: str) -> str:
    return f"np.zeros({tuple(tensor.shape)}, {dtype})"


def _numpy_name(tensor: tensor_pb2.Tensor) -> str:
    dtype = DTYPES[tensor.data_type]
    return "np.bool_" if dtype.kind == "b" else f"np.{dtype}"


def _literal(text: str) -> str:
    """A text as Python writes it."""
    return json.dumps(text, ensure_ascii=False)
