"""The parameters of dynamic AIPP, the image pre-processing that a model's caller chooses before each execution."""

from __future__ import annotations

from collections.abc import Sequence

from aclserve.errors import InvalidArgument
from aclserve_server.acl import types
from aclserve_server.acl.library import Library
from aclserve_server.acl.types import aclAippInputFormat
from aclserve_server.device.dataset import Dataset
from aclserve_server.device.model import Model
from aclserve_server.device.owned import Owned


class AippParameters(Owned):
    """One set of parameters for a batch of images. `set_input_format` and `set_source_size` are mandatory.

    Sizes are pixels, width before height as AscendCL has it; `image` is the index of an image in the batch. AscendCL
    checks ranges and raises `AclError`.
    """

    def __init__(self, library: Library, handle: types.AippParams, batch: int) -> None:
        super().__init__("AIPP parameters")
        self.library = library
        self.batch = batch
        self._handle = handle

    @classmethod
    def create(cls, library: Library, batch: int) -> AippParameters:
        """Parameters for `batch` images, at least one."""
        if batch < 1:
            raise InvalidArgument(f"AIPP parameters need at least one image, not {batch}", reason="AIPP_BATCH_INVALID")
        return cls(library, library.aclmdlCreateAIPP(batch), batch)

    @property
    def handle(self) -> types.AippParams:
        """AscendCL's handle, borrowed."""
        self._require_open()
        return self._handle

    def set_input_format(self, image_format: aclAippInputFormat) -> None:
        """The pixel format of the images."""
        self.library.aclmdlSetAIPPInputFormat(self.handle, image_format)

    def set_source_size(self, width: int, height: int) -> None:
        """The size of the images as they are given."""
        self.library.aclmdlSetAIPPSrcImageSize(self.handle, width, height)

    def set_colour_conversion(
        self, matrix: Sequence[int], output_bias: Sequence[int] = (0, 0, 0), input_bias: Sequence[int] = (0, 0, 0)
    ) -> None:
        """Switch colour conversion on: nine matrix elements by rows, three biases each way."""
        if (len(matrix), len(output_bias), len(input_bias)) != (9, 3, 3):
            raise InvalidArgument(
                "colour conversion takes 9 matrix elements, 3 output and 3 input biases",
                reason="AIPP_PARAMETER_INVALID",
            )
        self.library.aclmdlSetAIPPCscParams(self.handle, 1, *matrix, *output_bias, *input_bias)

    def set_red_blue_swap(self, enabled: bool) -> None:
        """Swap red and blue (or U and V)."""
        self.library.aclmdlSetAIPPRbuvSwapSwitch(self.handle, int(enabled))

    def set_alpha_swap(self, enabled: bool) -> None:
        """Move the first of four channels to the end (ARGB to RGBA)."""
        self.library.aclmdlSetAIPPAxSwapSwitch(self.handle, int(enabled))

    def set_crop(self, image: int, left: int, top: int, width: int, height: int) -> None:
        """Cut a rectangle out of an image."""
        self.library.aclmdlSetAIPPCropParams(self.handle, 1, left, top, width, height, image)

    def set_scale(self, image: int, from_size: tuple[int, int], to_size: tuple[int, int]) -> None:
        """Scale an image from one (width, height) to another."""
        self.library.aclmdlSetAIPPScfParams(self.handle, 1, *from_size, *to_size, image)

    def set_padding(self, image: int, top: int, bottom: int, left: int, right: int) -> None:
        """Put a border around an image."""
        self.library.aclmdlSetAIPPPaddingParams(self.handle, 1, top, bottom, left, right, image)

    def set_mean(self, image: int, channels: Sequence[int]) -> None:
        """Subtract a mean per channel (up to four)."""
        self.library.aclmdlSetAIPPDtcPixelMean(self.handle, *_four(channels, 0), image)

    def set_minimum(self, image: int, channels: Sequence[float]) -> None:
        """Subtract a minimum per channel (up to four)."""
        self.library.aclmdlSetAIPPDtcPixelMin(self.handle, *_four(channels, 0.0), image)

    def set_reciprocal_variance(self, image: int, channels: Sequence[float]) -> None:
        """Multiply each channel (up to four) with the reciprocal of its variance."""
        self.library.aclmdlSetAIPPPixelVarReci(self.handle, *_four(channels, 1.0), image)

    def apply(self, model: Model, inputs: Dataset, aipp_index: int) -> None:
        """Write the parameters into a dataset's AIPP input (`ModelDescription.aipp_inputs`), before each execution."""
        self.library.aclmdlSetInputAIPP(model.id, inputs.handle, aipp_index, self.handle)

    def apply_to_input(self, model: Model, inputs: Dataset, index: int) -> None:
        """As `apply`, naming the image input that the parameters are for."""
        self.library.aclmdlSetAIPPByInputIndex(model.id, inputs.handle, index, self.handle)

    def _release(self) -> None:
        self.library.aclmdlDestroyAIPP(self._handle)


def _four(channels: Sequence[float], missing: float) -> list[float]:
    if not 1 <= len(channels) <= 4:
        raise InvalidArgument(f"an image has 1 to 4 channels, not {len(channels)}", reason="AIPP_PARAMETER_INVALID")
    return [*channels, *[missing] * (4 - len(channels))]
