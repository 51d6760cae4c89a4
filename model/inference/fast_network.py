"""Inference on one device: the network prepared for speed, and its functions for a single picture.

The same modules as in training (`model.network.stm`), with BatchNorm folded into convolutions, channels-last
layout and a chosen precision. What depends on the picture alone is computed once per picture, for any number
of objects.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from model.inference.allocator import keep_freed_memory
from model.inference.device_copies import begin_download, queued
from model.inference.fused import can_fuse, fuse_blocks
from model.inference.prediction import ObjectLogit, merge_objects
from model.network.config import STRIDE
from model.network.memory import (
    AREA_UNITS,
    DEFAULT_CAPACITY,
    MemoryBank,
    MemoryEntry,
    MemoryRule,
    areas_of,
)
from model.network.read import space_time_read
from model.network.stm import Decoder, SpaceTimeMemoryNetwork, pad, padding_to_stride, unpad
from model.network.trunks import ResNet50Trunk

Precision = Literal["float32", "bfloat16", "float16"]


QUERY_LAYOUT = "query 3"
"""Changes with the tensors of `Query.state`: part of the address of those that are cached."""


class PreparedQuery(NamedTuple):
    """The features of a picture as a query that do not depend on

    key (1, Ck, h, w) in fp32. joined (1, C, h, w): the result of the decoder's first convolution on the
    query's value; the convolution is linear, so its result on the read is added later, and the value is not
    kept. eighth, quarter and half: the refined skip features, as in `model.network.stm.QueryFeatures`.
    """

    key: Tensor
    joined: Tensor
    eighth: Tensor
    quarter: Tensor
    half: Tensor | None = None


@dataclass(frozen=True)
class Query:
    """A picture as a query: its features (batch of 1, padded) and its size in pixels."""

    features: PreparedQuery
    height: int
    width: int

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.state().values())

    def state(self) -> dict[str, Tensor]:
        """The tensors by name, for a cache; the inverse is `Query.from_state`."""
        return {name: x for name, x in self.features._asdict().items() if x is not None}

    @classmethod
    def from_state(cls, state: dict[str, Tensor], height: int, width: int) -> Query:
        """The query from the tensors of `state`, on their device."""
        return cls(PreparedQuery(**state), height, width)


LEAST_LOSS = STRIDE * STRIDE * AREA_UNITS
"""The least loss of area before an object is read without the cap: the area of one position of the network. A
smaller loss is noise, which can be a large share of a small object."""


class FastNetwork:
    """A network ready to segment pictures one by one.

    Args:
        network: any `SpaceTimeMemoryNetwork`; it is copied, not changed.
        device: a torch device name: `cpu`, `cuda`, `cuda:1`, `mps`.
        precision: type of the convolutions and of the stored values. Keys, scores, logits and probabilities
            are fp32 always.
        previous_frame_cap, key_weight, shrink_guard: instead of those of the network's configuration.
    """

    def __init__(
        self,
        network: SpaceTimeMemoryNetwork,
        *,
        device: str = "cpu",
        precision: Precision = "float32",
        previous_frame_cap: float | None = None,
        key_weight: float | None = None,
        shrink_guard: float | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.precision = precision
        self.previous_frame_cap = (
            network.config.previous_frame_cap if previous_frame_cap is None else previous_frame_cap
        )
        self.key_weight = network.config.key_weight if key_weight is None else key_weight
        self.shrink_guard = network.config.shrink_guard if shrink_guard is None else shrink_guard
        self.dtype: torch.dtype = getattr(torch, precision)
        if self.device.type == "cpu":
            keep_freed_memory()  # first, so that it applies to weights, too
        prepared = copy.deepcopy(network).eval().requires_grad_(False)
        fold_batch_norm(prepared)
        prepare_decoder(prepared.decoder)
        for module in prepared.modules():
            if isinstance(module, nn.Conv2d):
                module.to(self.dtype)
        prepared = prepared.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._encoders_pad = self.device.type == "cpu" and can_fuse(self.dtype)
        if self._encoders_pad:
            fuse_blocks(prepared)
        self.network = prepared

    @torch.inference_mode()
    def encode_query(self, picture: Tensor) -> Query:
        """(3, H, W) RGB in [0, 1], display-referred sRGB -> the query's features (paper section 3.1)."""
        height, width = picture.shape[-2:]
        features = self.network.encode_query(self._batch(picture))
        joined = self._first_convolution.value(features.value)
        skips = features.eighth, features.quarter, features.half
        return Query(PreparedQuery(features.key.float(), joined, *skips), height, width)

    @torch.inference_mode()
    def encode_memory(self, picture: Tensor, probabilities: Tensor) -> MemoryEntry:
        """(3, H, W) RGB and (K, H, W) probabilities of the objects, both in [0, 1] -> one frame of memory."""
        probabilities = queued(probabilities, self.device).float()
        memory = self.network.encode_memory(self._batch(picture), self._batch(probabilities))
        keys = memory.key[0].float().flatten(2).transpose(1, 2).contiguous()  # (K, P, Ck)
        values = memory.value[0].flatten(2).contiguous()  # (K, Cv, P)
        return MemoryEntry(keys, values, areas_of(probabilities))

    def new_bank(
        self, rule: MemoryRule, like: MemoryEntry, *, capacity: int = DEFAULT_CAPACITY, permanent: int = 0
    ) -> MemoryBank:
        """An empty bank on this device for entries shaped like the given one."""
        return MemoryBank(rule, like, capacity=capacity, permanent=permanent)

    @torch.inference_mode()
    def segment(self, query: Query, bank: MemoryBank) -> Tensor:
        """Reads the memory and decodes (paper sections 3.2 to 3.4).

        Returns:
            (K + 1, H, W) fp32 probabilities, background first, summing to 1 at every pixel.
        """
        alone, merged, shrinking = self._segment_under_cap(query, bank)
        if not bool(shrinking.any()):
            return merged
        return merge_objects(self._without_cap(shrinking, alone, query, bank))

    @torch.inference_mode()
    def begin_segment(self, query: Query, bank: MemoryBank) -> Callable[[], Tensor]:
        """Begin `segment` without waiting for a graphics card. Until the result is there the bank must not
        change.

        Returns:
            What waits for the result: (K, H, W) fp32 probabilities on the CPU, without the background.
        """
        alone, merged, shrinking = self._segment_under_cap(query, bank)
        copied, shrinking_copied = begin_download(merged[1:]), begin_download(shrinking)

        @torch.inference_mode()
        def result() -> Tensor:
            if not bool(shrinking_copied().any()):
                return copied()
            return merge_objects(self._without_cap(shrinking, alone, query, bank))[1:].cpu()

        return result

    @torch.inference_mode()
    def segment_alone(self, query: Query, bank: MemoryBank) -> Tensor:
        """`segment` before the objects are merged, for objects with memories in several banks.

        Returns:
            (K, H, W) fp32: each object's own probability. `soft_aggregate` merges those of all banks.
        """
        alone, _, shrinking = self._segment_under_cap(query, bank)
        return self._without_cap(shrinking, alone, query, bank) if bool(shrinking.any()) else alone

    @torch.inference_mode()
    def previous_frame_caps(self, query: Query, bank: MemoryBank) -> list[float]:
        """The most that each of the K objects reads from the previous frame in `segment_alone`."""
        bounded = ~self._segment_under_cap(query, bank)[2] & bank.has_previous
        return [self.previous_frame_cap if one else 1.0 for one in bounded.tolist()]

    def _segment_with(self, previous_frame_cap: float, query: Query, bank: MemoryBank) -> Tensor:
        """(K, H, W) fp32: each object's own probability under one cap for all."""
        key = query.features.key  # (1, Ck, h, w)
        keys, others, previous = bank.keys_others_and_previous()
        read = space_time_read(
            key[0].flatten(1),
            others,
            keys=keys,
            key_weight=self.key_weight,
            previous=previous,
            previous_frame_cap=previous_frame_cap,
        )  # (K, Cv, N)
        read = read.reshape(*read.shape[:2], *key.shape[-2:])  # (K, Cv, h, w)
        alone = self.decode(read, query.features)  # (K, H, W) padded
        return unpad(alone, padding_to_stride(query.height, query.width))

    def _segment_under_cap(self, query: Query, bank: MemoryBank) -> tuple[Tensor, Tensor, Tensor]:
        """Under the cap: the objects alone (K, H, W), merged (K + 1, H, W), and those that shrink (K,)."""
        alone = self._segment_with(self.previous_frame_cap, query, bank)
        merged = merge_objects(alone)
        return alone, merged, self._shrinks(merged[1:], bank)

    def _without_cap(self, objects: Tensor, alone: Tensor, query: Query, bank: MemoryBank) -> Tensor:
        """`alone` (K, H, W) with those of the objects (K,) that are read without the cap."""
        return torch.where(objects[:, None, None], self._segment_with(1.0, query, bank), alone)

    def _shrinks(self, merged: Tensor, bank: MemoryBank) -> Tensor:
        """(K,) bool: objects that lose so much of their area under the cap that they are read without it.

        Args:
            merged: (K, H, W) probabilities under the cap.
        """
        if self.previous_frame_cap == 1 or self.shrink_guard == 1 or not bank.has_previous:
            return torch.zeros(len(merged), dtype=torch.bool, device=merged.device)
        before = bank.newest_areas
        lost = before - areas_of(merged)
        return (lost > self.shrink_guard * before) & (lost > LEAST_LOSS)

    @torch.inference_mode()
    def decode(self, read: Tensor, query: PreparedQuery) -> Tensor:
        """read (K, Cv, h, w) -> probability of each object alone (K, H, W) in fp32, padded."""
        x = self._first_convolution.read(read.to(query.joined.dtype)) + query.joined
        logit: Tensor = self.network.decoder.refine(x, query.eighth, query.quarter, query.half)
        return logit[:, 0].sigmoid_()

    @property
    def _first_convolution(self) -> SplitConv2d:
        split: nn.Module = self.network.decoder.conv
        assert isinstance(split, SplitConv2d)
        return split

    def _batch(self, x: Tensor) -> Tensor:
        """(C, H, W) -> (1, C, H', W') on the device, fp32, padded with zeros unless the encoders pad."""
        x = queued(x, self.device).float().unsqueeze(0)
        return x if self._encoders_pad else pad(x, padding_to_stride(x.shape[-2], x.shape[-1]))


class SplitConv2d(nn.Module):
    """The decoder's first convolution, cut into a part for the read and a part for the query's value.

    The sum of both is the convolution of [read, query value].
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        half = conv.in_channels // 2
        self.read, self.value = (
            nn.Conv2d(half, conv.out_channels, 3, padding=1, bias=bias) for bias in (False, True)
        )
        weight = conv.weight.detach()
        self.read.weight = nn.Parameter(weight[:, :half].clone(), requires_grad=False)
        self.value.weight = nn.Parameter(weight[:, half:].clone(), requires_grad=False)
        self.value.bias = conv.bias


def prepare_decoder(decoder: Decoder) -> None:
    """Cuts the first convolution in two and changes the last ones to return the object's logit, in place."""
    changed: dict[str, nn.Module] = {
        "conv": SplitConv2d(decoder.conv),
        "predict": ObjectLogit(decoder.predict),
    }
    if decoder.refine_half is not None:
        changed["predict_half"] = ObjectLogit(decoder.predict_half)
    for name, module in changed.items():
        setattr(decoder, name, module)


def fold_batch_norm(network: SpaceTimeMemoryNetwork) -> None:
    """Folds every BatchNorm of a network in eval mode into the convolutions before it, in place and exactly.

    The memory encoder's first BatchNorm follows a sum of three convolutions: its scale goes into all of them.
    """
    for encoder in (network.query_encoder, network.memory_encoder):
        trunk = encoder.trunk
        if not isinstance(trunk, ResNet50Trunk):
            continue  # the light backbone has none
        norm = trunk.bn1
        if isinstance(norm, nn.BatchNorm2d):
            trunk.conv1 = fuse_conv_bn_eval(trunk.conv1, norm)
            assert norm.running_var is not None
            scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            if encoder is network.memory_encoder:
                for stem in (encoder.mask_stem, encoder.others_stem):
                    assert isinstance(stem, nn.Conv2d)
                    stem.weight.mul_(scale.view(-1, 1, 1, 1))
            trunk.bn1 = nn.Identity()
        for block in (*trunk.res2, *trunk.res3, *trunk.res4):
            for number in ("1", "2", "3"):
                conv, norm = getattr(block, f"conv{number}"), getattr(block, f"bn{number}")
                if isinstance(norm, nn.BatchNorm2d):
                    setattr(block, f"conv{number}", fuse_conv_bn_eval(conv, norm))
                    setattr(block, f"bn{number}", nn.Identity())
            if block.downsample is not None and isinstance(block.downsample[1], nn.BatchNorm2d):
                block.downsample[0] = fuse_conv_bn_eval(block.downsample[0], block.downsample[1])
                block.downsample[1] = nn.Identity()
