"""Adapting a network to one shot: its decoder is trained further on the shot's keys.

It takes a few dozen small steps on clips made from the keys: synthetic clips from a single key (the object
moves and bends against its background), and with two keys or more also real pairs (one key in memory, the
other predicted). All other parts of the network do not change and need no gradient, so a CPU suffices.

The same keys, options and seed lead to the same bits on the same machine.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any, Literal

import torch
from torch import Tensor, nn

from model.data.pictures import Labels, Picture
from model.network.config import STRIDE
from model.network.stm import SpaceTimeMemoryNetwork
from model.training.clips import Clip, ClipDataset, ClipOptions, LoadedSource, Source
from model.training.trainer import clip_losses, collate, propagate_clip

Part = Literal["decoder", "values", "keys"]
PARTS: tuple[Part, ...] = ("decoder", "values", "keys")

MOST_OBJECTS_PER_CLIP = 3
"""Objects of one training clip; a key with more objects leads to several kinds of clips."""


@dataclass(frozen=True)
class AdaptOptions:
    """The options of an adaptation; the defaults were the best in measurements (docs/model-card.md).

    Args:
        steps: of the optimiser.
        learning_rate: at the start; it falls to zero along a half cosine.
        parts: the parts of the network that may change.
        crop: side of a training picture in pixels.
        clips: clips of one step; with two keys or more, real pairs and synthetic clips alternate.
        real_share: chance of a clip to be a real pair, where there are two keys.
        paste_chance: chance of a clip to have another copy of an object in front.
        motion: strength of the synthetic motion.
        seed: of the clips.
        bf16: convolutions in bfloat16.
    """

    steps: int = 60
    learning_rate: float = 3e-4
    parts: tuple[Part, ...] = ("decoder",)
    crop: int = 256
    clips: int = 2
    real_share: float = 0.5
    paste_chance: float = 0.0
    motion: float = 1.0
    seed: int = 0
    bf16: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1 or self.clips < 1 or self.crop < 2 * STRIDE or self.learning_rate <= 0:
            raise ValueError(f"these options of adapting cannot be used: {self}")
        unknown = set(self.parts) - set(PARTS)
        if unknown or not self.parts:
            raise ValueError(f"the parts that can be adapted are {', '.join(PARTS)}")

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return {**asdict(self), "parts": list(self.parts)}


@dataclass(frozen=True, eq=False)
class KeyPicture:
    """A key at working size.

    Args:
        picture: (3, H, W) RGB in [0, 1].
        masks: by object, (H, W) in [0, 1]; all zero means that the object is not here.
    """

    picture: Tensor
    masks: Mapping[str, Tensor]

    @property
    def visible(self) -> tuple[str, ...]:
        """The objects that are visible here."""
        return tuple(name for name, mask in self.masks.items() if bool((mask > 0.5).any()))

    def labels(self, objects: Sequence[str]) -> Tensor:
        """(H, W) int64: 0 background, 1..K the `objects`."""
        masks = torch.stack([self.masks[name] for name in objects])  # (K, H, W)
        background = 1 - masks.amax(dim=0, keepdim=True)
        return torch.cat([background, masks]).argmax(dim=0)

    def as_bytes(self, objects: Sequence[str]) -> tuple[Picture, Labels]:
        """The picture (H, W, 3) and the labels (H, W) of the `objects`."""
        picture = (self.picture * 255).round().clamp(0, 255).byte().permute(1, 2, 0)
        return picture.contiguous().cpu().numpy(), self.labels(objects).byte().cpu().numpy()


@dataclass(frozen=True)
class AdaptStep:
    """One step of adapting: its number from 1 on, and the clips' loss and mean IoU."""

    step: int
    loss: float
    iou: float


class NothingToAdaptError(ValueError):
    """No key shows an object that is large enough to adapt to."""


def adapted_names(network: SpaceTimeMemoryNetwork, parts: Sequence[Part]) -> tuple[str, ...]:
    """The names of the tensors that adapting changes, sorted."""
    prefixes = {
        "decoder": ("decoder.",),
        "values": ("query_key_value.value.", "memory_key_value.value."),
        "keys": ("query_key_value.key.", "memory_key_value.key."),
    }
    wanted = tuple(prefix for part in parts for prefix in prefixes[part])
    return tuple(sorted(name for name, _ in network.named_parameters() if name.startswith(wanted)))


def adapt(
    network: SpaceTimeMemoryNetwork,
    keys: Sequence[KeyPicture],
    options: AdaptOptions,
    *,
    device: str = "cpu",
    after_step: Callable[[AdaptStep], bool] | None = None,
) -> dict[str, Tensor]:
    """Adapts a copy of a network to a shot's keys.

    Args:
        network: does not change.
        keys: in ascending order of their frames; all pictures of one size.
        options: of the adaptation.
        device: a torch device name.
        after_step: is called with every step; if it returns False, that was the last one.

    Returns:
        The tensors that changed, by name, fp32 on the CPU.

    Raises:
        NothingToAdaptError: if no key shows a large enough object.
    """
    clips = KeyClips(keys, options)
    learner = copy.deepcopy(network).eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    names = adapted_names(learner, options.parts)
    state: dict[str, nn.Parameter] = dict(learner.named_parameters())
    for name, parameter in state.items():
        parameter.requires_grad_(name in names)
    learning = [state[name] for name in names]
    optimizer = torch.optim.Adam(learning, lr=options.learning_rate)
    for step in range(options.steps):
        share = 0.5 * (1 + math.cos(math.pi * step / options.steps))
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * share
        optimizer.zero_grad(set_to_none=True)
        batch = collate([clips.sample(step * options.clips + number) for number in range(options.clips)])
        batch = type(batch)(*(tensor.to(device) for tensor in batch))
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=options.bf16):
            log_probabilities = propagate_clip(learner, batch, through_memory=False)
        losses = clip_losses(log_probabilities, batch, jaccard_weight=1.0)
        losses.total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(learning, max_norm=1.0)
        optimizer.step()
        done = AdaptStep(step + 1, float(losses.total.detach()), float(losses.iou))
        if after_step is not None and not after_step(done):
            break
    return {name: state[name].detach().cpu().contiguous().clone() for name in names}


def with_adaptation(network: SpaceTimeMemoryNetwork, tensors: Mapping[str, Tensor]) -> SpaceTimeMemoryNetwork:
    """A copy of a network with the tensors of `adapt`.

    Raises:
        ValueError: if they do not fit the network.
    """
    state = network.state_dict()
    for name, tensor in tensors.items():
        if name not in state or state[name].shape != tensor.shape:
            raise ValueError(f"{name} {tuple(tensor.shape)} is no tensor of {network.config.name}")
    adapted = copy.deepcopy(network)
    adapted.load_state_dict({**state, **{name: tensor.float() for name, tensor in tensors.items()}})
    return adapted.eval()


class KeyClips:
    """Training clips from keys, by index; the same for the same keys and options.

    Raises:
        NothingToAdaptError: if no key shows an object.
    """

    def __init__(self, keys: Sequence[KeyPicture], options: AdaptOptions) -> None:
        stills: list[Source] = []
        for number, key in enumerate(keys):
            for objects in _groups(key.visible):
                stills.append(LoadedSource(f"key {number}", (key.as_bytes(objects),)))
        if not stills:
            raise NothingToAdaptError("no key shows an object")
        pairs: list[Source] = []
        for one, other in combinations(keys, 2):
            shared = [name for name in one.masks if name in other.masks]
            shared = [name for name in shared if name in one.visible or name in other.visible]
            for objects in _groups(shared):
                frames = tuple(key.as_bytes(objects) for key in (one, other))
                pairs.append(LoadedSource("pair", frames))
        short = min(keys[0].picture.shape[-2:])
        size = min(options.crop, short // STRIDE * STRIDE)
        clip = ClipOptions(
            size=size,
            max_objects=MOST_OBJECTS_PER_CLIP,
            still_share=1.0,
            region_chance=0.0,
            blur_chance=0.1,
            paste_chance=options.paste_chance,
            paste_is_object=0.0,
            # near the size in pixels of the objects in a propagation
            scale=(min(size / short / 1.25, 1.0), min(size / short / 0.7, 1.2)),
            still_motion=options.motion,
        )
        self._stills = ClipDataset([], [stills], clip, options.seed)
        paired = replace(clip, frames=2, still_share=0.0, max_skip=0)
        self._pairs = ClipDataset(pairs, [], paired, options.seed) if pairs else None
        # a step's clips have one number of frames, so a whole step is real or synthetic
        self._clips, self._real_share, self._seed = options.clips, options.real_share, options.seed

    def sample(self, index: int) -> Clip:
        """The clip of one index.

        Raises:
            NothingToAdaptError: if the objects are too small.
        """
        step = index // self._clips
        real = self._pairs is not None and _spread(step, self._real_share)
        try:
            return (self._pairs if real and self._pairs is not None else self._stills).sample(index)
        except RuntimeError as error:
            raise NothingToAdaptError("the objects are too small in the working picture") from error


def _spread(step: int, share: float) -> bool:
    """True for an evenly spread `share` of the steps."""
    return math.floor((step + 1) * share) > math.floor(step * share)


def _groups(objects: Sequence[str]) -> list[Sequence[str]]:
    return [objects[at : at + MOST_OBJECTS_PER_CLIP] for at in range(0, len(objects), MOST_OBJECTS_PER_CLIP)]
