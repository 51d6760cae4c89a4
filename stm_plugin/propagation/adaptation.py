"""Adapting to a shot, the shot's side: what its keys give to learn from, and the file of what was learnt.

The file `adapted/ID.safetensors` of a shot store holds the tensors that changed and no others, with a
manifest that says of what weights, from which keys and how. ID is the sha256 of the file, so the file proves
itself, and ID stands in every address of what it made.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from model.network.stm import SpaceTimeMemoryNetwork
from model.training.adapt import AdaptOptions, AdaptStep, KeyPicture, NothingToAdaptError, adapt
from model.weights_file import Manifest
from stm_plugin.errors import KeyframeError, PropagationCancelled, SettingsError, WeightsError
from stm_plugin.files.whole import store_error, write_atomically
from stm_plugin.planning.values import Facts, Key
from stm_plugin.propagation.memory_forecast import device_errors
from stm_plugin.propagation.results import Material
from stm_plugin.settings import DEFAULT_ADAPT_SECONDS, Settings
from stm_plugin.store.description import AdaptationRecord

_WITHOUT = "or go on without: `stm shot set SHOT adapt=false`."
_AGAIN = f"Run `stm adapt` again, {_WITHOUT}"

Progress = Callable[[AdaptStep], None]
Cancelled = Callable[[], bool]


@dataclass(frozen=True, eq=False)
class AdaptationResult:
    """What adapting gave: the tensors, and how many steps it took."""

    tensors: dict[str, Tensor]
    steps: int


@dataclass(frozen=True)
class LearningOptions:
    """How long adapting may take, and who hears of it.

    Attributes:
        seconds: it ends after this time, with what it has learnt by then.
        on_step: gets every step, in the caller's thread.
        cancelled: asked after every step; then nothing changes.
    """

    seconds: float = DEFAULT_ADAPT_SECONDS
    on_step: Progress = lambda step: None
    cancelled: Cancelled = lambda: False


def learn(
    network: SpaceTimeMemoryNetwork,
    material: Material,
    options: AdaptOptions,
    *,
    device: str,
    learning: LearningOptions,
) -> AdaptationResult:
    """Adapt a network to the keys of a shot.

    Args:
        network: the base, which stays as it is.
        material: gives pictures and masks at working size.
        learning: how long, and who hears of it. At least one step is taken.

    Raises:
        KeyframeError: there is no key to learn from.
        PropagationCancelled: the user stopped it.
        PlateError: the plate of a key cannot be read.
    """
    keys = [key for key in material.facts.keys if key.visible(material.facts.objects)]
    if not keys:
        raise KeyframeError(
            "There is no key to learn from.",
            hint="Give the mask of at least one frame (`stm shot key add`); an empty mask teaches nothing.",
        )
    pictures = [_key_picture(material, key) for key in material.facts.keys]
    end = time.monotonic() + learning.seconds
    steps = 0

    def after_step(step: AdaptStep) -> bool:
        nonlocal steps
        steps = step.step
        learning.on_step(step)
        return not learning.cancelled() and time.monotonic() < end

    try:
        with device_errors(device):
            tensors = adapt(network, pictures, options, device=device, after_step=after_step)
    except NothingToAdaptError as error:
        raise KeyframeError(
            f"The keys give nothing to learn from: {error}.",
            frame=keys[0].frame,
            hint="Give a smaller --region or a larger working size, or a key on which the object is larger.",
        ) from error
    if learning.cancelled():
        raise PropagationCancelled("Adapting was stopped.", hint="The shot is as it was before.")
    return AdaptationResult(tensors, steps)


def keep(
    folder: Path, adapted_network: AdaptationResult, base: Manifest, facts: Facts, options: AdaptOptions
) -> AdaptationRecord:
    """Write what was learnt into a store, atomically.

    The licence and the training data of the base carry over.

    Args:
        facts: of what was learnt from, with the plate as it was then.

    Raises:
        StoreError: the disk does not take it.
    """
    record = AdaptationRecord(
        id="",
        base=base.id,
        base_name=base.name,
        licence=base.licence,
        keys={key.frame: key.hash for key in facts.keys},
        steps=adapted_network.steps,
        plate={key.frame: facts.plate[key.frame] for key in facts.keys},
    )
    manifest = {
        "kind": "adaptation",
        **{name: value for name, value in asdict(record).items() if name != "id"},
        "architecture": base.architecture,
        "data": list(base.data),
        "options": options.to_dict(),
    }
    halves = {name: tensor.half() for name, tensor in adapted_network.tensors.items()}
    data = save(halves, metadata={"manifest": json.dumps(manifest, sort_keys=True)})
    identity = hashlib.sha256(data).hexdigest()
    write_atomically(adaptation_path(folder, identity), data)
    return AdaptationRecord(**{**asdict(record), "id": identity})


def default_options(settings: Settings) -> AdaptOptions:
    """The measured options, computed as exactly as the shot is."""
    return AdaptOptions(bf16=settings.precision == "bfloat16")


def read_adaptation(path: Path) -> dict[str, Tensor]:
    """The tensors of an adaptation's file, in the precision of the file.

    Raises:
        WeightsError: it is gone, or is not the file that was written.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise WeightsError("The adaptation of this shot is gone.", path=path, hint=_AGAIN) from error
    except OSError as error:
        raise store_error(error, path) from error
    if hashlib.sha256(data).hexdigest() != path.stem:
        raise WeightsError("The adaptation of this shot is damaged.", path=path, hint=_AGAIN)
    return load(data)


def read_adaptation_manifest(path: Path) -> dict[str, object]:
    """What an adaptation's file says of itself.

    Raises:
        WeightsError: it is no such file.
    """
    try:
        with safe_open(path, framework="pt") as stream:
            manifest: dict[str, object] = json.loads((stream.metadata() or {})["manifest"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise WeightsError("This is no adaptation of a shot.", path=path, hint=_AGAIN) from error
    return manifest


def adaptation_path(folder: Path, identity: str) -> Path:
    """Where a store keeps an adaptation."""
    return folder / "adapted" / f"{identity}.safetensors"


def check_adaptation(record: AdaptationRecord | None, base: Manifest | None) -> AdaptationRecord:
    """The adaptation that a shot is to use.

    Args:
        base: of the shot's weights; None where a network was brought along, which has no identity.

    Raises:
        SettingsError: the shot was never adapted.
        WeightsError: it was adapted from other weights.
    """
    if record is None:
        raise SettingsError(
            "The shot has not been adapted yet.",
            hint=f"Run `stm adapt SHOT`, which switches it on, {_WITHOUT}",
        )
    if base is not None and base.id != record.base:
        raise WeightsError(
            f"The shot was adapted from other weights ({record.base_name}, {record.base[:12]}) "
            f"than it uses now ({base.name}, {base.id[:12]}).",
            hint=_AGAIN,
        )
    return record


def advice(record: AdaptationRecord, keys: Sequence[Key], plate_hash: Callable[[int], str | None]) -> str:
    """What changed about the keys since the shot was adapted, as advice; empty if nothing did.

    Args:
        plate_hash: content of the plate on a frame; None where it is not there.
    """
    now = {key.frame: key.hash for key in keys}
    changed = [frame for frame in sorted(now) if frame in record.keys and record.keys[frame] != now[frame]]
    added = [frame for frame in sorted(now) if frame not in record.keys]
    removed = [frame for frame in sorted(record.keys) if frame not in now]
    rendered = [
        frame
        for frame, before in sorted(record.plate.items())
        if frame in now and plate_hash(frame) not in (None, before)
    ]
    said = [
        f"{', '.join(map(str, frames))} {what}"
        for frames, what in (
            (changed, "changed"),
            (added, "added"),
            (removed, "removed"),
            (rendered, f"with another plate under {'it' if len(rendered) == 1 else 'them'}"),
        )
        if frames
    ]
    if not said:
        return ""
    return f"The keys changed since the shot was adapted ({'; '.join(said)}): `stm adapt` would take them in."


def _key_picture(material: Material, key: Key) -> KeyPicture:
    names = tuple(key.masks)
    masks = torch.from_numpy(material.key_probabilities(key.frame, names))  # (K, h, w)
    return KeyPicture(material.picture(key.frame), dict(zip(names, masks, strict=True)))
