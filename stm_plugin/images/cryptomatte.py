"""Ids of objects in a matte file, after Cryptomatte 1.2.0 (Friedman and Jones, 2015; Psyop).

Each pixel lists the objects on it, most coverage first, as pairs of id and coverage: `CryptoObject00.R` and
`.G` are the first pair, `.B` and `.A` the second, `CryptoObject01.R` and `.G` the third. An id is a hash of
the object's name, read as a 32-bit float: these channels must be 32-bit floats, and are never scaled or
filtered. The header's manifest lists the names.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from stm_plugin.windows import FloatArray

LAYER = "CryptoObject"
PAIRS = 6
"""The most objects on one pixel; more are rare even with hair in front of crowds."""

_MASK = 0xFFFFFFFF
_EXPONENT = 0x7F800000


def murmur3_32(data: bytes, seed: int = 0) -> int:
    """MurmurHash3_x86_32 (Austin Appleby, public domain), unsigned.

    >>> f"{murmur3_32(b'hello'):08x}"
    '248bfa47'
    """
    result = seed
    whole = len(data) // 4 * 4
    for (word,) in struct.iter_unpack("<I", data[:whole]):
        result = _rotated(result ^ _scrambled(word), 13) * 5 + 0xE6546B64 & _MASK
    tail = data[whole:]
    if tail:
        result ^= _scrambled(int.from_bytes(tail, "little"))
    result ^= len(data)
    result = (result ^ result >> 16) * 0x85EBCA6B & _MASK
    result = (result ^ result >> 13) * 0xC2B2AE35 & _MASK
    return result ^ result >> 16


def object_id(name: str) -> int:
    """The id of a name, 32 bits that are a normal float: not denormal, Inf or NaN."""
    found = murmur3_32(name.encode("utf-8"))
    return found ^ 1 << 23 if found & _EXPONENT in (0, _EXPONENT) else found


def metadata(names: tuple[str, ...]) -> dict[str, str]:
    """The header attributes of the layer, with the manifest of these names."""
    key = f"cryptomatte/{murmur3_32(LAYER.encode()):08x}"[: len("cryptomatte/") + 7]
    manifest = json.dumps({name: f"{object_id(name):08x}" for name in names}, separators=(",", ":"))
    return {
        f"{key}/name": LAYER,
        f"{key}/hash": "MurmurHash3_32",
        f"{key}/conversion": "uint32_to_float32",
        f"{key}/manifest": manifest,
    }


def channels(mattes: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    """The channels of a frame by name, float32 (h, w).

    Args:
        mattes: object name -> (h, w) in [0, 1].
    """
    ids = np.array([object_id(name) for name in mattes], dtype=np.uint32).view(np.float32)
    coverage = np.stack(list(mattes.values()))  # (K, h, w)
    order = np.argsort(-coverage, axis=0, kind="stable")[:PAIRS]  # ranks, most coverage first
    ranked: npt.NDArray[np.float32] = np.take_along_axis(coverage, order, axis=0)
    found: dict[str, FloatArray] = {}
    for rank in range(len(order) + len(order) % 2):  # an even number of pairs: always R, G, B and A
        name, letters = f"{LAYER}{rank // 2:02d}", "RG" if rank % 2 == 0 else "BA"
        if rank < len(order):
            there = ranked[rank] > 0
            found[f"{name}.{letters[0]}"] = np.where(there, ids[order[rank]], np.float32(0))
            found[f"{name}.{letters[1]}"] = ranked[rank]
        else:
            nothing = np.zeros(coverage.shape[1:], np.float32)
            found[f"{name}.{letters[0]}"] = found[f"{name}.{letters[1]}"] = nothing
    return found


def _scrambled(word: int) -> int:
    return _rotated(word * 0xCC9E2D51 & _MASK, 15) * 0x1B873593 & _MASK


def _rotated(word: int, bits: int) -> int:
    return (word << bits | word >> (32 - bits)) & _MASK
