"""The space-time memory network: query encoder, memory encoder, read, decoder, soft aggregation.

Plain, differentiable modules; training and the engine's inference (`model.inference.fast_network`) both run
exactly these. Paper: Oh, Lee, Xu, Kim, "Video Object Segmentation using Space-Time Memory Networks", ICCV
2019, sections 3.1 to 3.4.

Letters in shape comments: B pictures, K objects, T memory frames, (H, W) the padded picture, (h, w) = (H/16,
W/16).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.network.config import STRIDE, NetworkConfig
from model.network.trunks import Trunk, TrunkFeatures, build_trunk

PROBABILITY_EPSILON = 1e-7
"""Probabilities are kept this far from 0 and 1 before the logit of the soft aggregation."""


class QueryFeatures(NamedTuple):
    """The features of a picture as a query, independent of objects.

    key (B, Ck, h, w), value (B, Cv, h, w); eighth, quarter and half are the decoder's skip features, already
    refined, at 1/8, 1/4 and 1/2 of the padded picture; half only where the configuration has that stage.
    """

    key: Tensor
    value: Tensor
    eighth: Tensor
    quarter: Tensor
    half: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> QueryFeatures:
        """The same function on each of the tensors."""
        return QueryFeatures(*(None if x is None else function(x) for x in self))  # type: ignore[arg-type]


class MemoryFeatures(NamedTuple):
    """The features of a picture with K masks as memory: key (B, K, Ck, h, w), value (B, K, Cv, h, w)."""

    key: Tensor
    value: Tensor


class KeyValue(nn.Module):
    """Two parallel 3x3 convolutions on the backbone's last map (paper section 3.1), without activation."""

    def __init__(self, inputs: int, key_channels: int, value_channels: int) -> None:
        super().__init__()
        self.key = nn.Conv2d(inputs, key_channels, 3, padding=1)
        self.value = nn.Conv2d(inputs, value_channels, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.key(x), self.value(x)


class Normalise(nn.Module):
    """RGB in [0, 1] to the backbone's input: (x - mean) / std."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(config.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(config.std).view(1, 3, 1, 1))

    def forward(self, picture: Tensor) -> Tensor:
        normalised: Tensor = (picture - self.mean) / self.std
        return normalised


class QueryEncoder(nn.Module):
    """Picture to backbone features (paper section 3.1)."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.normalise = Normalise(config)
        self.trunk: Trunk = build_trunk(config.trunk)

    def forward(self, picture: Tensor) -> TrunkFeatures:
        """(B, 3, H, W) in [0, 1] -> the backbone's features."""
        features: TrunkFeatures = self.trunk(self.normalise(picture))
        return features


class MemoryEncoder(nn.Module):
    """Picture and masks to the backbone's 1/16 map, one result per object (paper section 3.1).

    The input of the first layer is RGB, the object's mask, and the other objects' masks, summed and clamped.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.normalise = Normalise(config)
        self.trunk: Trunk = build_trunk(config.trunk)
        self.mask_stem = self.trunk.mask_stem()
        self.others_stem = self.trunk.mask_stem()

    def forward(self, picture: Tensor, masks: Tensor) -> Tensor:
        """(B, 3, H, W) and (B, K, H, W) in [0, 1] -> (B * K, C, h, w)."""
        objects = masks.shape[1]
        others = other_masks(masks)
        rgb = self.trunk.stem(self.normalise(picture))  # (B, C, H/2, W/2): the same for every object
        rgb = rgb.unsqueeze(1).expand(-1, objects, -1, -1, -1).flatten(0, 1)
        masks, others = (
            m.flatten(0, 1).unsqueeze(1).to(rgb.dtype) for m in (masks, others)
        )  # (B * K, 1, H, W)
        stem = rgb + self.mask_stem(masks) + self.others_stem(others)
        features: Tensor = self.trunk.after_stem(stem).sixteenth
        return features


def other_masks(masks: Tensor) -> Tensor:
    """(B, K, H, W) in [0, 1] -> for each object all others' masks, summed and clamped (B, K, H, W)."""
    return (masks.sum(dim=1, keepdim=True) - masks).clamp(0, 1)


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(relu(x)))), 3x3, without normalisation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        residual: Tensor = self.conv2(F.relu(self.conv1(F.relu(x))))
        return x + residual


class Refine(nn.Module):
    """One refinement stage (paper section 3.3): skip features plus the coarser map, doubled in size.

    The part that uses the skip features only (`skip`) does not depend on the object: it is computed once per
    picture. If the coarser map has another number of channels (never in the paper's network), a 1x1
    convolution converts it.
    """

    def __init__(self, skip_channels: int, coarse_channels: int, channels: int) -> None:
        super().__init__()
        self.skip_conv = nn.Conv2d(skip_channels, channels, 3, padding=1)
        self.skip_residual = ResidualBlock(channels)
        self.fit = nn.Conv2d(coarse_channels, channels, 1) if coarse_channels != channels else nn.Identity()
        self.residual = ResidualBlock(channels)

    def skip(self, features: Tensor) -> Tensor:
        """The part that depends on the picture alone: (B, Cs, h, w) -> (B, C, h, w)."""
        refined: Tensor = self.skip_residual(self.skip_conv(features))
        return refined

    def forward(self, refined_skip: Tensor, coarse: Tensor) -> Tensor:
        """(B or B*K, C, h, w) and (B*K, C', h/2, w/2) -> (B*K, C, h, w)."""
        coarse = F.interpolate(self.fit(coarse), scale_factor=2, mode="bilinear", align_corners=False)
        refined: Tensor = self.residual(refined_skip + coarse)
        return refined


class Prediction(nn.Conv2d):
    """A last activation and a 3x3 convolution to the logits of not-object and object: (N, C, h, w) -> (N, 2,
    h, w)."""

    def __init__(self, inputs: int) -> None:
        super().__init__(inputs, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.relu(x))


class Decoder(nn.Module):
    """From the read to the object's logits at full size (paper section 3.3).

    With `half_channels` a third refinement, at 1/2 of the picture, corrects the logits of the paper's two.
    """

    def __init__(self, config: NetworkConfig, trunk: Trunk) -> None:
        super().__init__()
        trunk_channels = trunk.channels
        coarse, middle, fine = config.decoder_channels
        self.conv = nn.Conv2d(2 * config.value_channels, coarse, 3, padding=1)
        self.residual = ResidualBlock(coarse)
        self.refine_eighth = Refine(trunk_channels[1], coarse, middle)
        self.refine_quarter = Refine(trunk_channels[0], middle, fine)
        self.predict = Prediction(fine)
        self.refine_half: Refine | None = None
        if config.half_channels:
            self.refine_half = Refine(trunk.half_channels, fine, config.half_channels)
            self.predict_half = Prediction(config.half_channels)
            for parameter in self.predict_half.parameters():
                nn.init.zeros_(parameter)  # so that this stage can be added to a trained network

    def skips(self, features: TrunkFeatures) -> tuple[Tensor, Tensor, Tensor | None]:
        """The features that depend on the picture alone, computed once for all objects: at 1/8, 1/4 and
        1/2."""
        half = None if self.refine_half is None else self.refine_half.skip(features.half)
        return self.refine_eighth.skip(features.eighth), self.refine_quarter.skip(features.quarter), half

    def forward(self, read: Tensor, eighth: Tensor, quarter: Tensor, half: Tensor | None = None) -> Tensor:
        """[read, query value] (N, 2 Cv, h, w) and the refined skips -> logits of not-object, object (N, 2, H,
        W)."""
        return self.refine(self.conv(read), eighth, quarter, half)

    def refine(self, x: Tensor, eighth: Tensor, quarter: Tensor, half: Tensor | None = None) -> Tensor:
        """The first convolution's result (N, C, h, w) and the skips -> logits (N, 2, H, W), in fp32."""
        x = self.residual(x)
        x = self.refine_eighth(eighth, x)
        x = self.refine_quarter(quarter, x)
        logits = self.predict(x).float()
        if self.refine_half is None:
            return F.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False)
        assert half is not None
        logits = F.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=False)
        logits = logits + self.predict_half(self.refine_half(half, x))
        return F.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=False)


class SpaceTimeMemoryNetwork(nn.Module):
    """The whole network for one configuration. All pictures have sizes that `STRIDE` divides (see
    `pad_to_stride`)."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.query_encoder = QueryEncoder(config)
        self.memory_encoder = MemoryEncoder(config)
        channels = self.query_encoder.trunk.channels
        self.query_key_value = KeyValue(channels[2], config.key_channels, config.value_channels)
        self.memory_key_value = KeyValue(channels[2], config.key_channels, config.value_channels)
        self.decoder = Decoder(config, self.query_encoder.trunk)

    def encode_query(self, picture: Tensor) -> QueryFeatures:
        """(B, 3, H, W) RGB in [0, 1] -> the query's features."""
        features = self.query_encoder(picture)
        key, value = self.query_key_value(features.sixteenth)
        return QueryFeatures(key, value, *self.decoder.skips(features))

    def encode_memory(self, picture: Tensor, masks: Tensor) -> MemoryFeatures:
        """(B, 3, H, W) RGB and (B, K, H, W) probabilities, both in [0, 1] -> the memory's features."""
        key, value = self.memory_key_value(self.memory_encoder(picture, masks))
        shape = masks.shape[:2]
        return MemoryFeatures(*(x.reshape(*shape, *x.shape[1:]) for x in (key, value)))

    def decode(self, read: Tensor, query: QueryFeatures) -> Tensor:
        """read (B, K, Cv, h, w) -> probability of each object alone (B, K, H, W), in fp32."""
        batch, objects = read.shape[:2]
        value = query.value.unsqueeze(1).expand(-1, objects, -1, -1, -1)
        joined = torch.cat([read.to(value.dtype), value], dim=2).flatten(0, 1)  # (B*K, 2 Cv, h, w)
        if batch > 1 and objects > 1:
            query = query.map(lambda x: x.repeat_interleave(objects, dim=0))
        logits = self.decoder(joined, query.eighth, query.quarter, query.half)
        alone: Tensor = logits.softmax(dim=1)[:, 1]
        return alone.reshape(batch, objects, *alone.shape[1:])


def read_dense(
    query_key: Tensor,
    memory_key: Tensor,
    memory_value: Tensor,
    *,
    previous_frame_cap: float = 1.0,
    key_weight: float = 0.0,
) -> Tensor:
    """The space-time read (paper section 3.2, equations 1 and 2) as two matrix products; for training on few
    frames.

    Args:
        query_key: (B, Ck, h, w).
        memory_key: (B, K, T, Ck, h, w), the key first and the previous frame last.
        memory_value: (B, K, T, Cv, h, w).
        previous_frame_cap: the largest share of a read from the previous frame, as in
            `model.network.read.space_time_read`; with T = 1 that frame is the key, and is not capped.
        key_weight: of the rest, the share from the key alone, as there; with T = 2 it is all.

    Returns:
        (B, K, Cv, h, w): for each query position the weighted sum of the memory's values, without the query's
        value.
    """
    size = query_key.shape[-2:]
    query = query_key.flatten(2).unsqueeze(1).float()  # (B, 1, Ck, hw)
    keys = memory_key.movedim(3, 2).flatten(3).float()  # (B, K, Ck, T*hw)
    values = memory_value.movedim(3, 2).flatten(3)  # (B, K, Cv, T*hw)
    with torch.autocast(query.device.type, enabled=False):  # a score of 30 has an error of 0.1 in bfloat16
        scores = keys.transpose(2, 3) @ query / keys.shape[2] ** 0.5  # (B, K, T*hw, hw)
    weights = _shares(scores)
    others = scores.shape[2] - query.shape[-1]  # positions of all frames but the previous one
    if previous_frame_cap < 1 and others:
        key = query.shape[-1]
        nothing = torch.zeros_like(scores[:, :, others:])
        without = (1 - key_weight) * _shares(scores[:, :, :others])
        without = torch.cat(
            [
                without[:, :, :key] + key_weight * _shares(scores[:, :, :key]),
                without[:, :, key:],
                nothing,
            ],
            dim=2,
        )
        weights = previous_frame_cap * weights + (1 - previous_frame_cap) * without
    read: Tensor = values @ weights.to(values.dtype)
    return read.reshape(*read.shape[:3], *size)


def _shares(scores: Tensor) -> Tensor:
    """The softmax (B, K, P, N) over P memory positions.

    No share is below exp(-40) of the largest one, 4e-18, which no sum in fp32 notices. Smaller ones become
    denormal numbers here or in the backward pass, whose products take a hundred times as long on a processor.
    """
    least = scores.detach().amax(dim=2, keepdim=True) - 40
    return torch.maximum(scores, least).softmax(dim=2)


def soft_aggregate(probabilities: Tensor) -> Tensor:
    """Merges independent objects into one distribution (paper section 3.4).

    Args:
        probabilities: (B, K, H, W), each object's own probability in [0, 1].

    Returns:
        (B, K + 1, H, W): background first, sums to 1 over dimension 1.
    """
    merged = _with_background(probabilities)
    odds = merged / (1 - merged)  # the softmax of the logits is the share of the odds
    return odds / odds.sum(dim=1, keepdim=True)


def soft_aggregate_log(probabilities: Tensor) -> Tensor:
    """Logarithm of `soft_aggregate`, for the cross-entropy of training."""
    return torch.logit(_with_background(probabilities)).log_softmax(dim=1)


def _with_background(probabilities: Tensor) -> Tensor:
    """(B, K, H, W) -> (B, K + 1, H, W): the probability of no object comes first; all are kept away from 0
    and 1."""
    probabilities = probabilities.float()
    background = (1 - probabilities).prod(dim=1, keepdim=True)
    return torch.cat([background, probabilities], dim=1).clamp(PROBABILITY_EPSILON, 1 - PROBABILITY_EPSILON)


class Padding(NamedTuple):
    """Pixels of zero added around a picture: left, right, top, bottom."""

    left: int
    right: int
    top: int
    bottom: int


def padding_to_stride(height: int, width: int) -> Padding:
    """The padding of a picture to multiples of 16: half before (rounded down), the rest after."""
    extra_y, extra_x = -height % STRIDE, -width % STRIDE
    return Padding(extra_x // 2, extra_x - extra_x // 2, extra_y // 2, extra_y - extra_y // 2)


def pad(x: Tensor, padding: Padding) -> Tensor:
    """Adds zeros around the last two dimensions."""
    return F.pad(x, tuple(padding)) if any(padding) else x


def unpad(x: Tensor, padding: Padding) -> Tensor:
    """Removes the padding of `pad`."""
    height, width = x.shape[-2:]
    return x[..., padding.top : height - padding.bottom, padding.left : width - padding.right]
