"""Small moving pictures, masks, and random weights that give varied masks, for comparisons."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.network.config import network_config
from model.network.stm import SpaceTimeMemoryNetwork
from tests.reference.stm import PlainNetwork, Query, ReferenceSTM, memorise, segment

FRAMES, OBJECTS, HEIGHT, WIDTH = 21, 3, 58, 91  # a key and a chain of 20; neither side a multiple of 16
SEED = 7


class PlainModules:
    """The product's plain modules of any backbone, for the reference's loop."""

    def __init__(self, network: SpaceTimeMemoryNetwork) -> None:
        self.network = network

    def encode_query(self, picture: Tensor) -> Query:
        features = self.network.encode_query(picture[None])
        return Query(features.key[0], features.value[0], features[2:])

    def encode_memory(self, picture: Tensor, mask: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        memory = self.network.encode_memory(picture[None], torch.stack([mask, others])[None])
        return memory.key[0, 0], memory.value[0, 0]

    def decode(self, y: Tensor, skips: Any) -> Tensor:
        logits: Tensor = self.network.decoder(y[None], *skips)
        return logits.softmax(dim=1)[0, 1]


def texture(seed: int) -> Tensor:
    """(FRAMES, 3, HEIGHT, WIDTH): a smooth random pattern that drifts and changes, in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 14, 14, generator=generator)
    fine = torch.rand(1, 3, 50, 50, generator=generator)
    size = (HEIGHT + FRAMES, WIDTH + 2 * FRAMES)
    wide = 0.75 * F.interpolate(coarse, size, mode="bicubic")
    wide = wide + 0.25 * F.interpolate(fine, size, mode="bilinear")
    frames = [wide[0, :, t : t + HEIGHT, 2 * t : 2 * t + WIDTH] * (1 - t / 60) for t in range(FRAMES)]
    return torch.stack(frames).clamp(0, 1)


def first_masks() -> Tensor:
    """(OBJECTS, HEIGHT, WIDTH): a disk, a soft-edged box, and a box at the picture's border."""
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    disk = ((y - 22) ** 2 + (x - 28) ** 2 < 15**2).float()
    box = F.avg_pool2d((((y - 30).abs() < 18) & ((x - 62).abs() < 14)).float()[None], 5, 1, 2)[0]
    border = ((y > 40) & (x < 25)).float()
    return torch.stack([disk, box, border])


def lively_reference() -> ReferenceSTM:
    """The paper's network with random weights; the same ones every time."""
    torch.manual_seed(SEED)
    network = ReferenceSTM()
    _prepare(network, network, [network.KV_M_r4.Key, network.KV_Q_r4.Key], network.Decoder.pred2)
    return network


def lively_network(name: str) -> SpaceTimeMemoryNetwork:
    """A network of the product with random weights; the same ones every time."""
    torch.manual_seed(SEED)
    network = SpaceTimeMemoryNetwork(network_config(name)).eval()
    keys = [network.memory_key_value.key, network.query_key_value.key]
    _prepare(network, PlainModules(network), keys, network.decoder.predict)
    return network


def _scale_by_data(network: nn.Module, run: Callable[[], object]) -> None:
    """Scales every convolution's weights so that its output has a deviation of 1 on what `run` computes.

    Random weights as they come make every probability 1/2, or only 0 and 1: any two programs agree on those.
    """
    done: set[nn.Module] = set()

    def rescale(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        if module in done:
            return output
        done.add(module)
        assert isinstance(module, nn.Conv2d)
        scale = 1 / output.std().clamp_min(1e-6)
        module.weight.mul_(scale)
        if module.bias is not None:
            module.bias.mul_(scale)
        return output * scale

    hooks = [m.register_forward_hook(rescale) for m in network.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()


def _prepare(network: nn.Module, plain: PlainNetwork, keys: list[nn.Conv2d], prediction: nn.Conv2d) -> None:
    """Random weights with lively features, a read that prefers some positions, and masks with a contour."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.7, 1.4)
                module.weight.uniform_(0.7, 1.3)
                module.bias.normal_(0, 0.2)
        picture, masks = texture(1)[0], first_masks()

        def run() -> Tensor:
            return segment(plain, picture, [memorise(plain, picture, masks)])

        _scale_by_data(network, run)
        for key in keys:
            key.weight.mul_(1.6)
        assert prediction.bias is not None
        prediction.weight.mul_(1.5)
        prediction.bias.zero_()
        logits: list[Tensor] = []
        hook = prediction.register_forward_hook(lambda module, inputs, output: logits.append(output))
        run()
        hook.remove()
        prediction.bias.copy_(-torch.cat(logits).mean(dim=(0, 2, 3)))  # object and background in balance
