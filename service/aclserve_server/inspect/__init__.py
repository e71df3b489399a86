"""What a model file says about itself, read without a device: Ascend OM and ONNX. Pure readers."""

from __future__ import annotations

from aclserve_server.inspect.describe import FileDescription, describe_file, format_text
from aclserve_server.inspect.om import OmFile, OmPartition, read_chip
from aclserve_server.inspect.onnx import OnnxFile, OnnxTensor
from aclserve_server.inspect.problem import InspectError

__all__ = [
    "FileDescription",
    "InspectError",
    "OmFile",
    "OmPartition",
    "OnnxFile",
    "OnnxTensor",
    "describe_file",
    "format_text",
    "read_chip",
]
