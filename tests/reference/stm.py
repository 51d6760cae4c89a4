"""STM as its paper states it, plain and slow; the product's inference is compared with it.

Oh, Lee, Xu, Kim: "Video Object Segmentation using Space-Time Memory Networks", ICCV 2019. Section and
equation numbers are the paper's. Nothing here is folded, hoisted, streamed or batched over objects: the
memory grows by concatenation, the matrix of the read is materialised, and one object is computed after
another. Nothing is imported from the product.

`ReferenceSTM` is the paper's network with the attribute names of the released weights, so its
`state_dict()` has the names and shapes that a loader of those weights must accept. `propagate` is the
inference loop; it runs on any `PlainNetwork`, so networks with other backbones can be compared with the
same loop.

Letters in shape comments: K objects, T memory frames, (H, W) the padded picture, (h, w) = (H/16, W/16),
Ck and Cv the channels of keys and values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import sqrt
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STRIDE = 16
KEY_CHANNELS = 128
VALUE_CHANNELS = 512
DECODER_CHANNELS = 256
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
EPSILON = 1e-7


# ----------------------------------------------------------------------------------------------------
# The network (sections 3.1 and 3.3)
# ----------------------------------------------------------------------------------------------------


class _Encoder(nn.Module):
    """ResNet-50 up to stage res4; what both encoders have in common."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        import torchvision  # imported here: it loads slower than torch

        resnet = torchvision.models.resnet50(weights=None)
        self.conv1 = resnet.conv1
        self.bn1 = resnet.bn1
        self.relu = resnet.relu
        self.maxpool = resnet.maxpool
        self.res2 = resnet.layer1
        self.res3 = resnet.layer2
        self.res4 = resnet.layer3
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))

    def normalise(self, picture: Tensor) -> Tensor:
        return (picture - self.mean) / self.std

    def stages(self, stem: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(1, 64, H/2, W/2) -> res4 (1, 1024, h, w), res3 (1, 512, 2h, 2w), res2 (1, 256, 4h, 4w)."""
        x = self.maxpool(self.relu(self.bn1(stem)))
        res2 = self.res2(x)
        res3 = self.res3(res2)
        res4 = self.res4(res3)
        return res4, res3, res2


class QueryEncoder(_Encoder):
    """Section 3.1: the query encoder sees the picture only."""

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.stages(self.conv1(self.normalise(picture)))


class MemoryEncoder(_Encoder):
    """Section 3.1: the memory encoder sees the picture and the mask (released weights: also the others)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1_m = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.conv1_o = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)

    def forward(self, picture: Tensor, mask: Tensor, others: Tensor) -> Tensor:
        """(1, 3, H, W), (1, 1, H, W), (1, 1, H, W) -> res4 (1, 1024, h, w)."""
        stem = self.conv1(self.normalise(picture)) + self.conv1_m(mask) + self.conv1_o(others)
        return self.stages(stem)[0]


class KeyValue(nn.Module):
    """Section 3.1: two parallel convolutions without activation."""

    def __init__(self) -> None:
        super().__init__()
        self.Key = nn.Conv2d(1024, KEY_CHANNELS, kernel_size=3, padding=1)
        self.Value = nn.Conv2d(1024, VALUE_CHANNELS, kernel_size=3, padding=1)

    def forward(self, res4: Tensor) -> tuple[Tensor, Tensor]:
        return self.Key(res4), self.Value(res4)


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(relu(x)))); `downsample` fits x where the channels differ."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.downsample = None if inputs == outputs else nn.Conv2d(inputs, outputs, kernel_size=3, padding=1)
        self.conv1 = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.conv2(F.relu(self.conv1(F.relu(x))))
        if self.downsample is not None:
            x = self.downsample(x)
        result: Tensor = x + residual
        return result


class Refine(nn.Module):
    """Section 3.3: skip features of the query encoder join the coarser map at twice its size."""

    def __init__(self, skip_channels: int) -> None:
        super().__init__()
        self.convFS = nn.Conv2d(skip_channels, DECODER_CHANNELS, kernel_size=3, padding=1)
        self.ResFS = ResidualBlock(DECODER_CHANNELS, DECODER_CHANNELS)
        self.ResMM = ResidualBlock(DECODER_CHANNELS, DECODER_CHANNELS)

    def forward(self, skip: Tensor, coarse: Tensor) -> Tensor:
        s = self.ResFS(self.convFS(skip))
        m = s + F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
        refined: Tensor = self.ResMM(m)
        return refined


class Decoder(nn.Module):
    """Section 3.3."""

    def __init__(self) -> None:
        super().__init__()
        self.convFM = nn.Conv2d(2 * VALUE_CHANNELS, DECODER_CHANNELS, kernel_size=3, padding=1)
        self.ResMM = ResidualBlock(DECODER_CHANNELS, DECODER_CHANNELS)
        self.RF3 = Refine(512)
        self.RF2 = Refine(256)
        self.pred2 = nn.Conv2d(DECODER_CHANNELS, 2, kernel_size=3, padding=1)

    def forward(self, y: Tensor, res3: Tensor, res2: Tensor) -> Tensor:
        """(1, 1024, h, w) -> logits (1, 2, H, W)."""
        m4 = self.ResMM(self.convFM(y))
        m3 = self.RF3(res3, m4)
        m2 = self.RF2(res2, m3)
        p2 = self.pred2(F.relu(m2))
        return F.interpolate(p2, scale_factor=4, mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class Query:
    """A picture as a query: key (Ck, h, w), value (Cv, h, w), and whatever the decoder needs besides."""

    key: Tensor
    value: Tensor
    skips: Any


class PlainNetwork(Protocol):
    """What the inference loop needs of a network. All pictures and masks are padded to multiples of 16."""

    def encode_query(self, picture: Tensor) -> Query:
        """(3, H, W) -> the query."""

    def encode_memory(self, picture: Tensor, mask: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        """(3, H, W), the object's mask (H, W), the other masks (H, W) -> key (Ck, h, w), value (Cv, h, w)."""

    def decode(self, y: Tensor, skips: Any) -> Tensor:
        """Equation 1's y (2 Cv, h, w), what was read first, then the query's value -> probability (H, W)."""


class ReferenceSTM(nn.Module):
    """The paper's network, under the names of the released weights. BatchNorm is in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.Encoder_M = MemoryEncoder()
        self.Encoder_Q = QueryEncoder()
        self.KV_M_r4 = KeyValue()
        self.KV_Q_r4 = KeyValue()
        self.Decoder = Decoder()
        self.eval()

    def encode_query(self, picture: Tensor) -> Query:
        res4, res3, res2 = self.Encoder_Q(picture[None])
        key, value = self.KV_Q_r4(res4)
        return Query(key[0], value[0], (res3, res2))

    def encode_memory(self, picture: Tensor, mask: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        res4 = self.Encoder_M(picture[None], mask[None, None], others[None, None])
        key, value = self.KV_M_r4(res4)
        return key[0], value[0]

    def decode(self, y: Tensor, skips: Any) -> Tensor:
        res3, res2 = skips
        logits = self.Decoder(y[None], res3, res2)
        probability: Tensor = F.softmax(logits, dim=1)[0, 1]
        return probability


# ----------------------------------------------------------------------------------------------------
# Space-time memory read (section 3.2) and soft aggregation (section 3.4)
# ----------------------------------------------------------------------------------------------------


def read_memory(query_key: Tensor, memory_keys: Tensor, memory_values: Tensor) -> Tensor:
    """Equations 1 and 2 without the concatenation: for each query position i, (1/Z) sum_j f(k_i, k_j) v_j.

    f is exp of the dot product over sqrt(Ck), so f / Z is a softmax over all T*h*w memory positions.

    Args:
        query_key: (Ck, h, w).
        memory_keys: (Ck, T, h, w).
        memory_values: (Cv, T, h, w).

    Returns:
        (Cv, h, w).
    """
    channels, height, width = query_key.shape
    k_q = query_key.reshape(channels, -1)  # (Ck, hw)
    k_m = memory_keys.reshape(channels, -1)  # (Ck, Thw)
    v_m = memory_values.reshape(memory_values.shape[0], -1)  # (Cv, Thw)
    similarity = (k_m.T @ k_q) / sqrt(channels)  # (Thw, hw)
    weights = F.softmax(similarity, dim=0)  # over the memory, for each query position
    return (v_m @ weights).reshape(-1, height, width)


def soft_aggregation(probabilities: Tensor) -> Tensor:
    """(K, ...) each object by itself -> (K + 1, ...) background first, one distribution per pixel."""
    background = torch.prod(1 - probabilities, dim=0, keepdim=True)
    p = torch.cat([background, probabilities]).clamp(EPSILON, 1 - EPSILON)
    return F.softmax(torch.log(p / (1 - p)), dim=0)


# ----------------------------------------------------------------------------------------------------
# Inference (section 3.6)
# ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """Which past frames a query reads (section 3.6 and table 5), for the query frame t = 1, 2, ...

    Args:
        first: frame 0 is read.
        previous: frame t - 1 is read.
        every: N of `every:N`: frames 0, N, 2N, ... before t are read; 0 for never.
    """

    first: bool = False
    previous: bool = False
    every: int = 0

    @classmethod
    def parse(cls, text: str) -> Rule:
        """`first`, `previous`, `first+previous` or `every:N`."""
        if text.startswith("every:"):
            return cls(first=True, previous=True, every=int(text.removeprefix("every:")))
        return {
            "first": cls(first=True),
            "previous": cls(previous=True),
            "first+previous": cls(first=True, previous=True),
        }[text]

    def keeps(self, frame: int) -> bool:
        """Whether `frame` stays in memory for good, so that every later query reads it."""
        if frame == 0:
            return self.first
        return self.every > 0 and frame % self.every == 0

    def frames(self, query_frame: int) -> list[int]:
        """The memory frames that the query reads, in order."""
        return [f for f in range(query_frame) if self.keeps(f) or (self.previous and f == query_frame - 1)]


def pad_to_stride(x: Tensor) -> tuple[Tensor, tuple[slice, slice]]:
    """Zeros around the last two dimensions up to multiples of 16, floor(extra / 2) before and the rest after.

    Returns:
        the padded tensor, and the rows and columns at which the original lies in it.
    """
    height, width = x.shape[-2:]
    extra_y = (STRIDE - height % STRIDE) % STRIDE
    extra_x = (STRIDE - width % STRIDE) % STRIDE
    top, left = extra_y // 2, extra_x // 2
    padded = torch.zeros(*x.shape[:-2], height + extra_y, width + extra_x, dtype=x.dtype, device=x.device)
    inside = slice(top, top + height), slice(left, left + width)
    padded[..., inside[0], inside[1]] = x
    return padded, inside


def memorise(network: PlainNetwork, picture: Tensor, masks: Tensor) -> list[tuple[Tensor, Tensor]]:
    """One picture (3, H', W') with K masks (K, H', W') of any size -> for each object its key and value."""
    padded_picture, _ = pad_to_stride(picture)
    padded_masks, _ = pad_to_stride(masks)
    entries = []
    for index in range(len(padded_masks)):
        others = torch.zeros_like(padded_masks[index])
        for other_index in range(len(padded_masks)):
            if other_index != index:
                others = others + padded_masks[other_index]
        entries.append(network.encode_memory(padded_picture, padded_masks[index], others.clamp(0, 1)))
    return entries


def segment(
    network: PlainNetwork,
    picture: Tensor,
    memory: list[list[tuple[Tensor, Tensor]]],
    last_frame_cap: float = 1.0,
    first_share: float = 0.0,
) -> Tensor:
    """One picture (3, H', W') against memory[frame][object] = (key, value) -> (K + 1, H', W')."""
    return soft_aggregation(segment_alone(network, picture, memory, last_frame_cap, first_share))


def segment_alone(
    network: PlainNetwork,
    picture: Tensor,
    memory: list[list[tuple[Tensor, Tensor]]],
    last_frame_cap: float,
    first_share: float,
) -> Tensor:
    """The same before the objects are merged: (K, H', W').

    With a `last_frame_cap` s below 1, which the paper has not: s times what is read of all memory frames,
    plus 1 - s times what is read of all but the last; of which `first_share` is read of the first alone.
    """
    padded_picture, (rows, columns) = pad_to_stride(picture)
    query = network.encode_query(padded_picture)
    probabilities = []
    for index in range(len(memory[0])):
        keys = torch.stack([frame[index][0] for frame in memory], dim=1)  # (Ck, T, h, w)
        values = torch.stack([frame[index][1] for frame in memory], dim=1)  # (Cv, T, h, w)
        read = read_memory(query.key, keys, values)
        if last_frame_cap < 1:
            without = read_memory(query.key, keys[:, :-1], values[:, :-1])
            without *= 1 - first_share
            without += first_share * read_memory(query.key, keys[:, :1], values[:, :1])
            read = last_frame_cap * read + (1 - last_frame_cap) * without
        y = torch.cat([read, query.value])  # equation 1
        probabilities.append(network.decode(y, query.skips))
    return torch.stack(probabilities)[:, rows, columns]


@torch.no_grad()
def propagate(
    network: PlainNetwork,
    pictures: Iterable[Tensor],
    masks: Tensor,
    rule: str,
    previous_frame_cap: float = 1.0,
    key_weight: float = 0.0,
    shrink_guard: float = 1.0,
) -> Iterator[Tensor]:
    """The whole inference loop (section 3.6): frame 0 has masks, every later frame is segmented in order.

    Args:
        network: the network.
        pictures: (3, H', W') RGB in [0, 1], all of one size, frame 0 first.
        masks: (K, H', W') in [0, 1], of frame 0.
        rule: `first`, `previous`, `first+previous` or `every:N`.
        previous_frame_cap: bound on the previous frame where others are in memory beside it.
        key_weight: of the rest, what is read of frame 0 alone.
        shrink_guard: an object that would lose more than this share of its area under that bound is read
            without it, if it would lose more than one position's.

    Yields:
        for frames 1, 2, ...: (K + 1, H', W') probabilities after soft aggregation, background first.
    """
    which = Rule.parse(rule)
    memory: dict[int, list[tuple[Tensor, Tensor]]] = {}
    previous_picture, previous_masks = None, masks
    for frame, picture in enumerate(pictures):
        if previous_picture is not None:
            read_frames = which.frames(frame)
            if frame - 1 in read_frames:
                memory[frame - 1] = memorise(network, previous_picture, previous_masks)
            memory = {f: memory[f] for f in read_frames}
            share = previous_frame_cap if frame - 1 in memory and len(memory) > 1 else 1.0
            alone = segment_alone(network, picture, list(memory.values()), share, key_weight)
            result = soft_aggregation(alone)
            for index, before in enumerate(previous_masks):
                lost = before.sum() - result[1 + index].sum()
                if share < 1 and lost > shrink_guard * before.sum() and lost > STRIDE * STRIDE:
                    without = segment_alone(network, picture, list(memory.values()), 1.0, 0.0)
                    alone[index] = without[index]
            result = soft_aggregation(alone)
            yield result
            previous_masks = result[1:]
        previous_picture = picture
