"""The two named networks, as plain configurations."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

TrunkName = Literal["resnet50", "efficientnet_lite0"]

STRIDE = 16
"""Pixels of the picture per position of a key or value (paper section 3.1: the trunk's stage `res4`)."""


@dataclass(frozen=True)
class NetworkConfig:
    """The configuration of a space-time memory network.

    Args:
        name: the registered name, written into every weights manifest.
        trunk: the backbone of both encoders.
        key_channels: channels of a key (paper: trunk channels / 8).
        value_channels: channels of a value (paper: trunk channels / 2).
        decoder_channels: decoder width at 1/16, 1/8 and 1/4 of the picture (paper: 256 at each).
        half_channels: decoder width of a last refinement at 1/2, for finer contours; 0 (paper): none.
        mean, std: per-channel normalisation of RGB in [0, 1].
        previous_frame_cap: the largest share of a read that may come from the previous frame, unless it is
            the key or the only frame in memory; 1 (paper): all of it. Training reads in the same way.
        key_weight: of the rest of such a read, the share that comes from keys alone, if other frames are in
            memory; 0: none. Training reads in the same way.
        shrink_guard: the share of its area that an object may lose from one frame to the next under that cap.
            If it loses more, and more than one position of the network, the frame is read without the cap. 1:
            it may lose all. In inference only.
    """

    name: str
    trunk: TrunkName
    key_channels: int
    value_channels: int
    decoder_channels: tuple[int, int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    half_channels: int = 0
    previous_frame_cap: float = 1.0
    key_weight: float = 0.0
    shrink_guard: float = 1.0

    def to_dict(self) -> dict[str, object]:
        """As JSON-ready values, for checkpoints and manifests."""
        return asdict(self)


NETWORKS: dict[str, NetworkConfig] = {
    config.name: config
    for config in (
        NetworkConfig(
            name="stm-r50",
            trunk="resnet50",
            key_channels=128,
            value_channels=512,
            decoder_channels=(256, 256, 256),
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        ),
        NetworkConfig(
            name="stm-lite",
            trunk="efficientnet_lite0",
            key_channels=64,
            value_channels=192,
            decoder_channels=(128, 96, 64),
            half_channels=16,
            # EfficientNet-Lite is trained on (pixel - 127) / 128 with pixels in 0..255.
            mean=(127 / 255, 127 / 255, 127 / 255),
            std=(128 / 255, 128 / 255, 128 / 255),
            # Mistakes are repeated through the previous frame. docs/model-card.md has the measurements.
            previous_frame_cap=0.5,
            # Stored frames hold the network's own mistakes; keys are true.
            key_weight=0.3,
            # A fast turning object is most similar to the previous frame: under the cap it can be lost at
            # once.
            shrink_guard=0.15,
        ),
    )
}


def network_config(name: str) -> NetworkConfig:
    """The configuration registered under `name`.

    Raises:
        ValueError: if there is no such network; the text lists those that exist.
    """
    try:
        return NETWORKS[name]
    except KeyError:
        raise ValueError(f"unknown network {name!r}; known are {', '.join(NETWORKS)}") from None
