"""The edge refiner ready to run on a device, in fp32: arrays in, arrays out."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import torch

from model.network.edges import FILTERS, EdgeRefiner, fitted

FloatArray = npt.NDArray[np.float32]


class FastRefiner:
    """An `EdgeRefiner` for inference. Results do not depend on the number of threads.

    Args:
        device: a torch device name.
    """

    def __init__(self, refiner: EdgeRefiner, device: str = "cpu") -> None:
        self.device = torch.device(device)
        prepared = refiner.eval().requires_grad_(False)
        self._refiner: EdgeRefiner = prepared.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def refine(self, inputs: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Alpha and how likely each pixel is soft, both (h, w) in [0, 1].

        Args:
            inputs: (8, h, w), as for the network; h and w are multiples of its STRIDE.
        """
        batch = torch.from_numpy(inputs)[None].to(self.device)
        filtered = None
        if self.device.type == "cpu":
            planes = [guided_by_boxes(inputs[:3], inputs[3], radius) for radius in FILTERS]
            filtered = torch.from_numpy(np.stack(planes))[None]
        alpha, soft = self._refiner(batch.contiguous(memory_format=torch.channels_last), filtered)
        return _array(alpha[0].clamp(0, 1)), _array(soft[0].sigmoid())


def guided_by_boxes(picture: FloatArray, values: FloatArray, radius: int) -> FloatArray:
    """`model.network.edges.guided` of one picture, by running sums: on a CPU many times faster.

    Args:
        picture: (3, h, w) in [0, 1]; values: (h, w) in [0, 1]; h and w are multiples of 4.
        radius: of the square windows in pixels, a multiple of 4.
    """
    r, g, b = picture
    height, width = values.shape
    size, reach = (width // 4, height // 4), radius // 4
    share = 1 / _sums(np.ones(size[::-1], np.float32), reach)

    def mean(plane: FloatArray) -> FloatArray:
        return _sums(np.asarray(plane, np.float32), reach) * share

    products = (r * r, r * g, r * b, g * g, g * b, b * b, r * values, g * values, b * values)
    reduced = (cv2.resize(one, size, interpolation=cv2.INTER_AREA) for one in (r, g, b, values, *products))
    means = np.stack([mean(np.asarray(one, np.float32)) for one in reduced])
    slopes = fitted(torch.from_numpy(means)[None])[0].numpy()
    wide = [cv2.resize(mean(one), (width, height), interpolation=cv2.INTER_LINEAR) for one in slopes]
    result = wide[0] * r + wide[1] * g + wide[2] * b + wide[3]
    return np.clip(np.asarray(result, np.float32), 0, 1)


def _sums(plane: FloatArray, reach: int) -> FloatArray:
    """Sums over square windows (h, w); nothing beyond the border."""
    side = (2 * reach + 1, 2 * reach + 1)
    sums = cv2.boxFilter(plane, cv2.CV_32F, side, normalize=False, borderType=cv2.BORDER_CONSTANT)
    return np.asarray(sums, np.float32)


def _array(values: torch.Tensor) -> FloatArray:
    array: FloatArray = values.float().cpu().contiguous().numpy()
    return array
