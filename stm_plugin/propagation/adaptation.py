"""Adaptation to a shot: training clips from its keys, and the file of the adapted weights.

The file `adapted/ID.safetensors` of a shot store holds the changed tensors only. Its manifest states the base
weights, the keys and the options. ID is the sha256 of the file, so a damaged file is noticed; ID is part of
every address of a result that the adaptation made.
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
    """The result of an adaptation: the tensors, and the number of steps."""

    tensors: dict[str, Tensor]
    steps: int


@dataclass(frozen=True)
class AdaptationRun:
    """How long adapting may take, and what is called meanwhile.

    Attributes:
        seconds: it ends after this time; the steps done by then count.
        on_step: is called with every step, in the caller's thread.
        cancelled: is called after every step; where it returns True nothing changes.
    """

    seconds: float = DEFAULT_ADAPT_SECONDS
    on_step: Progress = lambda step: None
    cancelled: Cancelled = lambda: False


def adapt_to_keys(
    network: SpaceTimeMemoryNetwork,
    material: Material,
    options: AdaptOptions,
    *,
    device: str,
    run: AdaptationRun,
) -> AdaptationResult:
    """Adapt a network to the keys of a shot.

    Args:
        network: the base, which does not change.
        material: returns pictures and masks at working size.
        run: how long, and what is called. At least one step is done.

    Raises:
        KeyframeError: there is no key to adapt to.
        PropagationCancelled: the user stopped it.
        PlateError: the plate of a key cannot be read.
    """
    keys = [key for key in material.facts.keys if key.visible(material.facts.objects)]
    if not keys:
        raise KeyframeError(
            "There is no key to adapt to.",
            hint="Give the mask of at least one frame (`stm shot key add`); an empty mask does not count.",
        )
    pictures = [_key_picture(material, key) for key in material.facts.keys]
    end = time.monotonic() + run.seconds
    steps = 0

    def after_step(step: AdaptStep) -> bool:
        nonlocal steps
        steps = step.step
        run.on_step(step)
        return not run.cancelled() and time.monotonic() < end

    try:
        with device_errors(device):
            tensors = adapt(network, pictures, options, device=device, after_step=after_step)
    except NothingToAdaptError as error:
        raise KeyframeError(
            f"The keys cannot be adapted to: {error}.",
            frame=keys[0].frame,
            hint="Give a smaller --region or a larger working size, or a key on which the object is larger.",
        ) from error
    if run.cancelled():
        raise PropagationCancelled("Adapting was stopped.", hint="The shot is unchanged.")
    return AdaptationResult(tensors, steps)


def keep(
    folder: Path, adapted_network: AdaptationResult, base: Manifest, facts: Facts, options: AdaptOptions
) -> AdaptationRecord:
    """Write an adaptation into a store, atomically.

    Licence and training data of the base apply to it, too.

    Args:
        facts: the keys and the plate that it was adapted to.

    Raises:
        StoreError: the disk is full or cannot be written.
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
    tensors = {name: tensor.half() for name, tensor in adapted_network.tensors.items()}
    data = save(tensors, metadata={"manifest": json.dumps(manifest, sort_keys=True)})
    identity = hashlib.sha256(data).hexdigest()
    write_atomically(adaptation_path(folder, identity), data)
    return AdaptationRecord(**{**asdict(record), "id": identity})


def default_options(settings: Settings) -> AdaptOptions:
    """The measured options, with the shot's precision."""
    return AdaptOptions(bf16=settings.precision == "bfloat16")


def read_adaptation(path: Path) -> dict[str, Tensor]:
    """The tensors of an adaptation's file, in the precision of the file.

    Raises:
        WeightsError: it is missing, or was changed.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise WeightsError("The adaptation of this shot is missing.", path=path, hint=_AGAIN) from error
    except OSError as error:
        raise store_error(error, path) from error
    if hashlib.sha256(data).hexdigest() != path.stem:
        raise WeightsError("The adaptation of this shot is damaged.", path=path, hint=_AGAIN)
    return load(data)


def read_adaptation_manifest(path: Path) -> dict[str, object]:
    """The manifest of an adaptation's file.

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
    """The path of an adaptation in a store."""
    return folder / "adapted" / f"{identity}.safetensors"


def check_adaptation(record: AdaptationRecord | None, base: Manifest | None) -> AdaptationRecord:
    """The adaptation that a shot is to use.

    Args:
        base: of the shot's weights; None for a given network, which has no identity.

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
    """Advice that names the keys that changed since the shot was adapted; empty if none did.

    Args:
        plate_hash: content hash of the plate on a frame; None where it is missing.
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
    return f"The keys changed since the shot was adapted ({'; '.join(said)}): `stm adapt` would use them."


def _key_picture(material: Material, key: Key) -> KeyPicture:
    names = tuple(key.masks)
    masks = torch.from_numpy(material.key_probabilities(key.frame, names))  # (K, h, w)
    return KeyPicture(material.picture(key.frame), dict(zip(names, masks, strict=True)))
