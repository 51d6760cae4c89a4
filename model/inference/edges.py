"""The edge refiner ready to run on a device, in fp32: arrays in, arrays out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from model.network.edges import EdgeRefiner

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
        alpha, soft = self._refiner(batch.contiguous(memory_format=torch.channels_last))
        return _array(alpha[0].clamp(0, 1)), _array(soft[0].sigmoid())


def _array(values: torch.Tensor) -> FloatArray:
    array: FloatArray = values.float().cpu().contiguous().numpy()
    return array
