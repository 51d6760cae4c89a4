"""A key's mask on the frames beside it, moved by the picture's motion with its softness.

The network draws an object a little differently from the artist, so a matte would jump beside a key. Within
`REACH` frames of a key the matte goes over to the key's own mask, moved by optical flow (dense inverse
search: Kroeger, Timofte, Dai, Van Gool, 2016), as far as the flow there and the flow back agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from stm_plugin.windows import FloatArray

ByteArray = npt.NDArray[np.uint8]

SHARES = (0.8, 0.5, 0.25)
"""The key's part in the matte one, two and three frames away from it. With all of it the jump would only
come later."""
REACH = len(SHARES)
_AGREED, _DOUBTED = 0.5, 1.5
"""Working pixels between where a pixel comes from and where it comes back to: trusted in full up to the
first, not at all from the second on."""
HARD, _SOFT = 0.1, 0.25
"""`model.network.edges.softness_of` of a key that counts as hard, and of one that counts as soft."""

_LEAST = 16
"""Working pixels: smaller pictures have no motion that could be found."""


@dataclass(frozen=True, eq=False)
class Motion:
    """How a picture moved to another.

    Attributes:
        across, down: (h, w), where in the first picture each pixel of the second comes from.
        agreement: (h, w) in [0, 1], how far that may be trusted.
    """

    across: FloatArray
    down: FloatArray
    agreement: FloatArray


@dataclass(frozen=True, eq=False)
class CarriedKey:
    """A key's mask on a frame beside it.

    Attributes:
        mask: (h, w) in [0, 1], at working size.
        share: (h, w) in [0, 1], its part in the matte.
        softness: 0 if the key was drawn hard, which says nothing about how soft its edges are, to 1 for a
            soft one.
    """

    mask: FloatArray
    share: FloatArray
    softness: float


def motion_between(first: FloatArray, second: FloatArray) -> Motion:
    """The motion from one working picture (3, h, w) to another. The same bits for any number of threads."""
    start, end = _grey(first), _grey(second)
    back = _flow(end, start)  # for each pixel of the second: where it was
    forth = _flow(start, end)
    rows, columns = np.mgrid[0 : end.shape[0], 0 : end.shape[1]].astype(np.float32)
    across, down = columns + back[..., 0], rows + back[..., 1]
    returned = cv2.remap(forth, across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    gap = np.hypot(back[..., 0] + returned[..., 0], back[..., 1] + returned[..., 1])
    agreement = np.clip((_DOUBTED - gap) / (_DOUBTED - _AGREED), 0, 1).astype(np.float32)
    return Motion(across, down, np.asarray(cv2.GaussianBlur(agreement, (0, 0), 2), np.float32))


def carry(mask: FloatArray, motion: Motion, distance: int, softness: float) -> CarriedKey:
    """A key's mask (h, w) on a frame.

    Args:
        distance: frames between the key and the frame, from 1 to REACH.
        softness: of the key, `model.network.edges.softness_of`.
    """
    moved = cv2.remap(mask, motion.across, motion.down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    share = motion.agreement * np.float32(SHARES[distance - 1])
    told = min(1.0, max(0.0, (softness - HARD) / (_SOFT - HARD)))
    return CarriedKey(np.asarray(moved, np.float32), np.asarray(share, np.float32), told)


def _grey(picture: FloatArray) -> ByteArray:
    red, green, blue = picture
    luma = np.float32(0.299) * red + np.float32(0.587) * green + np.float32(0.114) * blue
    grey: ByteArray = np.clip(luma * np.float32(255) + np.float32(0.5), 0, 255).astype(np.uint8)
    return grey


def _flow(first: ByteArray, second: ByteArray) -> FloatArray:
    """(h, w, 2): how far each pixel of the first picture goes to its place in the second."""
    height, width = first.shape
    if min(height, width) < _LEAST:
        return np.zeros((height, width, 2), np.float32)
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    return np.asarray(search.calc(first, second, None), np.float32)  # type: ignore[call-overload]
