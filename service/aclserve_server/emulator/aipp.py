"""Image pre-processing: parameter sets are real and checked, but no ONNX model has such a stage to apply them to."""

from __future__ import annotations

from typing import Any

from aclserve_server.acl.types import aclAippInputFormat, aclmdlInputAippType
from aclserve_server.emulator import status
from aclserve_server.emulator.calls import Calls, need, refuse
from aclserve_server.emulator.faults import Failure
from aclserve_server.emulator.models import LoadedModel
from aclserve_server.emulator.objects import AippSet

_HEADER_BYTES, _IMAGE_BYTES = 64, 96
_MAX_BATCH = 127
_NO_INDEX = 0xFFFFFFFF
_EVEN_WIDTH = (
    aclAippInputFormat.ACL_YUV420SP_U8,
    aclAippInputFormat.ACL_YUV422SP_U8,
    aclAippInputFormat.ACL_YUYV_U8,
)


class AippCalls(Calls):
    """acl/acl_mdl.h: aclmdlCreateAIPP to aclmdlGetFirstAippInfo."""

    def aclmdlCreateAIPP(self, batch: int) -> int | None:
        return self.machine.handles.add(AippSet(batch)) if 1 <= batch <= _MAX_BATCH else None

    def aclmdlDestroyAIPP(self, handle: int | None) -> None:
        self._find(handle)
        self.machine.handles.remove(handle or 0)

    def aclmdlSetAIPPInputFormat(self, handle: int | None, layout: int) -> None:
        if layout not in list(aclAippInputFormat)[:-1]:
            raise refuse(f"image format {layout} is not known")
        self._find(handle).values["format"] = (layout,)

    def aclmdlSetAIPPSrcImageSize(self, handle: int | None, width: int, height: int) -> None:
        found = self._find(handle)
        layout = found.values.get("format", (0,))
        if not 2 <= width <= 4096 or not 1 <= height <= 4096:
            raise refuse(f"image size is {width} x {height}, expected 2 to 4096 by 1 to 4096")
        if (layout[0] in _EVEN_WIDTH and width % 2) or (layout[0] == aclAippInputFormat.ACL_YUV420SP_U8 and height % 2):
            raise refuse(f"image size {width} x {height} must be even for this format")
        found.values["size"] = (width, height)

    def aclmdlSetAIPPCscParams(self, handle: int | None, switch: int, *numbers: int) -> None:
        self._switched(handle, "csc", switch, numbers)

    def aclmdlSetAIPPRbuvSwapSwitch(self, handle: int | None, switch: int) -> None:
        self._switched(handle, "rbuv_swap", switch, ())

    def aclmdlSetAIPPAxSwapSwitch(self, handle: int | None, switch: int) -> None:
        self._switched(handle, "ax_swap", switch, ())

    def aclmdlSetAIPPScfParams(
        self, handle: int | None, switch: int, in_w: int, in_h: int, out_w: int, out_h: int, image: int
    ) -> None:
        self._per_image(handle, "scf", image)
        self._switched(handle, f"scf {image}", switch, (in_w, in_h, out_w, out_h))

    def aclmdlSetAIPPCropParams(
        self, handle: int | None, switch: int, start_w: int, start_h: int, width: int, height: int, image: int
    ) -> None:
        self._per_image(handle, "crop", image)
        self._switched(handle, f"crop {image}", switch, (start_w, start_h, width, height))

    def aclmdlSetAIPPPaddingParams(
        self, handle: int | None, switch: int, top: int, bottom: int, left: int, right: int, image: int
    ) -> None:
        self._per_image(handle, "padding", image)
        self._switched(handle, f"padding {image}", switch, (top, bottom, left, right))

    def aclmdlSetAIPPDtcPixelMean(self, handle: int | None, c0: int, c1: int, c2: int, c3: int, image: int) -> None:
        self._per_image(handle, "mean", image).values[f"mean {image}"] = (c0, c1, c2, c3)

    def aclmdlSetAIPPDtcPixelMin(
        self, handle: int | None, c0: float, c1: float, c2: float, c3: float, image: int
    ) -> None:
        self._per_image(handle, "min", image).values[f"min {image}"] = (c0, c1, c2, c3)

    def aclmdlSetAIPPPixelVarReci(
        self, handle: int | None, c0: float, c1: float, c2: float, c3: float, image: int
    ) -> None:
        self._per_image(handle, "var", image).values[f"var {image}"] = (c0, c1, c2, c3)

    def aclmdlGetAippDataSize(self, batch: int, size: Any) -> None:
        need(size, "size")
        if not 1 <= batch <= _MAX_BATCH:
            raise refuse(f"batch is {batch}, expected 1 to {_MAX_BATCH}")
        size[0] = _HEADER_BYTES + batch * _IMAGE_BYTES

    def aclmdlSetInputAIPP(self, model_id: int, dataset: int | None, index: int, handle: int | None) -> None:
        self._apply(model_id, dataset, index, handle)

    def aclmdlSetAIPPByInputIndex(self, model_id: int, dataset: int | None, index: int, handle: int | None) -> None:
        self._apply(model_id, dataset, index, handle)

    def aclmdlGetAippType(self, model_id: int, index: int, kind: Any, attached: Any) -> None:
        need(kind, "type")
        need(attached, "dynamicAttachedDataIndex")
        self._input(model_id, index)
        kind[0] = int(aclmdlInputAippType.ACL_DATA_WITHOUT_AIPP)
        attached[0] = _NO_INDEX

    def aclmdlGetFirstAippInfo(self, model_id: int, index: int, info: Any) -> None:
        need(info, "aippInfo")
        self._input(model_id, index)
        raise Failure(status.GE_AIPP_NOT_EXIST, f"input {index} of model {model_id} has no image pre-processing")

    def aclmdlCreateAndGetOpDesc(
        self,
        device: int,
        stream: int,
        task: int,
        name: int | None,
        length: int,
        inputs: Any,
        input_count: Any,
        outputs: Any,
        output_count: Any,
    ) -> None:
        raise Failure(status.API_NOT_SUPPORT, "operator descriptions are not supported by the emulated device")

    def _find(self, handle: int | None) -> AippSet:
        found = self.machine.handles.get(handle, AippSet)
        if found is None:
            raise refuse("not a live aclmdlAIPP")
        return found

    def _per_image(self, handle: int | None, what: str, image: int) -> AippSet:
        found = self._find(handle)
        if image >= found.batch_size:
            raise refuse(f"{what}: image {image} is outside the batch of {found.batch_size}")
        return found

    def _switched(self, handle: int | None, what: str, switch: int, numbers: tuple[int, ...]) -> None:
        if switch not in (0, 1):
            raise refuse(f"{what}: the switch is {switch}, expected 0 or 1")
        self._find(handle).values[what] = (switch, *numbers)

    def _input(self, model_id: int, index: int) -> LoadedModel:
        model = self.machine.model(model_id)
        if index >= len(model.program.inputs) + (model.program.gears is not None):
            raise Failure(status.GE_PARAM_INVALID, f"the model has no input {index}")
        return model

    def _apply(self, model_id: int, dataset: int | None, index: int, handle: int | None) -> None:
        self.machine.dataset(dataset)
        self._find(handle)
        self._input(model_id, index)
        raise Failure(
            status.GE_AIPP_NOT_EXIST, f"input {index} of model {model_id} has no dynamic image pre-processing"
        )
