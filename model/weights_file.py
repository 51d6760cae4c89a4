"""Weights files: safetensors with a manifest that describes them; no pickle is ever executed.

A weights file has its manifest in its metadata, without the file's sha256. Shipped weights also have it as a
JSON file beside them.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Literal

from safetensors import SafetensorError, safe_open

from model.network.config import network_config

if TYPE_CHECKING:  # manifests are read without loading torch
    from torch import Tensor, nn

    from model.network.edges import EdgeRefiner
    from model.network.stm import SpaceTimeMemoryNetwork

SHIPPED = Path(__file__).parent / "weights"
"""Folder of the shipped weights."""

SHIPPED_EDGES = SHIPPED / "edges"
"""Folder of the shipped edge refiners."""

DEFAULT_WEIGHTS = "stm-lite"
DEFAULT_EDGES = "edges-lite"

PUBLISHED_LICENCE = "non-commercial (CC BY-NC-SA 4.0, as the authors of STM state for their released weights)"
PUBLISHED_DATA = ("stills (saliency and segmentation sets) and DAVIS-2017 / YouTube-VOS, as the paper says",)


Use = Literal["non-commercial only", "commercial use allowed", "see the licence"]
"""What a licence in words allows, in a few words."""

_FORBIDS = re.compile(
    r"non-?\s?commercial|\bBY-NC\b|research use|\b(?:no|not|not for|never for) commercial"
    r"|commercial use (?:is )?(?:not|forbidden|prohibited)",
    re.IGNORECASE,
)
_ALLOWS = re.compile(r"commercial use(?: is)? allowed|free for commercial use", re.IGNORECASE)


@dataclass(frozen=True)
class Manifest:
    """The description of a weights file.

    Args:
        name: short name shown to people.
        architecture: name of a registered network configuration.
        licence: under which the weights may be used, in words.
        data: what they were trained on, one entry per set, with its licence.
        recipe: how they were trained, in words.
        scores: measured quality, name to value.
        sha256: of the weights file; also the weights' identity in every content address.
    """

    name: str
    architecture: str
    licence: str
    data: tuple[str, ...] = ()
    recipe: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    sha256: str = ""

    @property
    def id(self) -> str:
        """Identity of the weights: the file's sha256."""
        return self.sha256

    @property
    def use(self) -> Use:
        """What the licence's words allow: they say `non-commercial`, or `free for commercial use`."""
        if _FORBIDS.search(self.licence):
            return "non-commercial only"
        return "commercial use allowed" if _ALLOWS.search(self.licence) else "see the licence"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Manifest:
        """The inverse of `to_dict`. Unknown names are ignored, so that older programs can read newer
        manifests.

        Raises:
            ValueError: if a field is missing or has another type.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"it is a {type(values).__name__}, not an object with fields")
        for name in ("name", "architecture", "licence", "recipe", "sha256"):
            value = values.get(name, "" if name in ("recipe", "sha256") else None)
            if not isinstance(value, str):
                raise ValueError(f"the field {name} is {'missing' if value is None else 'not a text'}")
        data, scores = values.get("data", ()), values.get("scores", {})
        if not isinstance(data, list | tuple) or not all(isinstance(one, str) for one in data):
            raise ValueError("the field data is not a list of texts")
        if not isinstance(scores, Mapping) or not all(
            isinstance(one, int | float) and not isinstance(one, bool) for one in scores.values()
        ):
            raise ValueError("the field scores is not numbers by name")
        known = {k: v for k, v in values.items() if k in cls.__dataclass_fields__}
        return cls(**{**known, "data": tuple(data)})


class WeightsFileError(ValueError):
    """A weights file cannot be used; the text states which and why."""


def shipped_weights() -> list[Path]:
    """The shipped weights files."""
    return sorted(SHIPPED.glob("*.safetensors"))


def shipped_edges() -> list[Path]:
    """The weights files of the shipped edge refiners."""
    return sorted(SHIPPED_EDGES.glob("*.safetensors"))


def find_weights(name: str | Path) -> Path:
    """The file of a shipped name, or the given path.

    Raises:
        WeightsFileError: if neither exists.
    """
    return _find(name, shipped_weights())


def find_edges(name: str | Path) -> Path:
    """The file of an edge refiner, as `find_weights`."""
    return _find(name, shipped_edges())


def _find(name: str | Path, shipped: list[Path]) -> Path:
    for one in shipped:
        if one.stem == str(name):
            return one
    path = Path(name)
    if path.is_file():
        return path
    names = ", ".join(p.stem for p in shipped) or "none"
    raise WeightsFileError(f"{name}: no such weights; give a file, or one of the shipped names ({names})")


def load_network(name: str | Path = DEFAULT_WEIGHTS) -> tuple[SpaceTimeMemoryNetwork, Manifest]:
    """A network in fp32 with the weights of a safetensors file, or of a `.pth` released by the authors of
    STM.

    Raises:
        WeightsFileError: if the file does not exist, is damaged, is not a weights file, or does not fit its
            architecture.
    """
    from model.network.stm import SpaceTimeMemoryNetwork

    path = find_weights(name)
    if path.suffix in (".pth", ".pt"):
        state, manifest = read_published(path)
    else:
        state, manifest = _read_safetensors(path)
    with _known_architecture(path):
        network = SpaceTimeMemoryNetwork(network_config(manifest.architecture))
    _fill(network, state, manifest, path)
    return network.eval(), manifest


def load_refiner(name: str | Path = DEFAULT_EDGES) -> tuple[EdgeRefiner, Manifest]:
    """An edge refiner in fp32.

    Raises:
        WeightsFileError: if the file does not exist, is damaged, or is not that of an edge refiner.
    """
    from model.network.edges import EdgeRefiner, edge_config

    path = find_edges(name)
    state, manifest = _read_safetensors(path)
    with _known_architecture(path):
        refiner = EdgeRefiner(edge_config(manifest.architecture))
    _fill(refiner, state, manifest, path)
    return refiner.eval(), manifest


@contextmanager
def _known_architecture(path: Path) -> Iterator[None]:
    """WeightsFileError, with the file, where an architecture inside is unknown."""
    try:
        yield
    except ValueError as error:
        raise WeightsFileError(
            f"{path}: {error}; a newer version of the plug-in may know it: update, or choose other weights"
        ) from None


def _fill(network: nn.Module, state: Mapping[str, Tensor], manifest: Manifest, path: Path) -> None:
    """Puts tensors into a network. WeightsFileError where they do not fit or are not numbers."""
    for tensor_name, tensor in state.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise WeightsFileError(
                f"{path}: the tensor {tensor_name} holds values that are not numbers; get the file again"
            )
    values = {name: v.float() if v.is_floating_point() else v for name, v in state.items()}
    try:
        network.load_state_dict(values)
    except RuntimeError as error:
        first = " ".join(str(error).split("\n")[1:2]).strip() or str(error)
        raise WeightsFileError(
            f"{path}: does not fit {manifest.architecture} ({first}); get the file again, or export it anew"
        ) from None


def read_edges_manifest(name: str | Path = DEFAULT_EDGES) -> Manifest:
    """The manifest of an edge refiner. WeightsFileError as `load_refiner`."""
    return _read_safetensors_manifest(find_edges(name))


def read_manifest(name: str | Path = DEFAULT_WEIGHTS) -> Manifest:
    """The manifest alone, without building the network.

    Raises:
        WeightsFileError: as `load_network`.
    """
    path = find_weights(name)
    return read_published(path)[1] if path.suffix in (".pth", ".pt") else _read_safetensors_manifest(path)


def save_network(
    network: SpaceTimeMemoryNetwork | EdgeRefiner, manifest: Manifest, path: Path, *, half: bool = True
) -> Manifest:
    """Writes a weights file and its manifest beside it (`.json`).

    Args:
        half: floating-point tensors as fp16, which halves the file.

    Returns:
        The manifest with the file's sha256.
    """
    state = {
        k: (v.half() if half and v.is_floating_point() else v).contiguous().cpu().clone()
        for k, v in network.state_dict().items()
    }
    _save_state(state, manifest, path)
    path.chmod(0o644)  # safetensors makes it private, but it is for every user
    manifest = replace(manifest, sha256=_sha256(path))
    path.with_suffix(".json").write_text(json.dumps(manifest.to_dict(), indent=2) + "\n")
    return manifest


def save_mean(parts: Sequence[tuple[str | Path, float]], name: str, path: Path) -> Manifest:
    """Writes the mean of several weights of one architecture. Its manifest follows from theirs: all their
    data, and the licences of those that restrict the use, if any does.

    Args:
        parts: names or files, and the share of each; the shares count relative to each other.
        name: shown to people.
        path: file to write.

    Raises:
        ValueError: if there are less than two parts, a share is not above 0, or the architectures differ.
        WeightsFileError: as `load_network`.
    """
    if len(parts) < 2 or not all(0 < share < math.inf for _, share in parts):
        raise ValueError("a mean needs two weights at least, each with a share above 0")
    loaded = [load_network(part) for part, _ in parts]
    architectures = {manifest.architecture for _, manifest in loaded}
    if len(architectures) > 1:
        raise ValueError(
            f"weights of {' and '.join(sorted(architectures))} have no mean; take weights of one architecture"
        )
    whole = sum(share for _, share in parts)
    shares = [share / whole for _, share in parts]
    states = [network.state_dict() for network, _ in loaded]
    mean, manifests = loaded[0][0], [manifest for _, manifest in loaded]
    mixed = {key: value.clone() for key, value in states[0].items()}
    for key, value in mixed.items():
        if value.is_floating_point():
            value *= shares[0]
            for share, state in zip(shares[1:], states[1:], strict=True):
                value += share * state[key]
    mean.load_state_dict(mixed)
    restricting = [one.licence for one in manifests if one.use != "commercial use allowed"]
    return save_network(
        mean,
        Manifest(
            name=name,
            architecture=architectures.pop(),
            licence="; ".join(dict.fromkeys(restricting or [one.licence for one in manifests])),
            data=tuple(dict.fromkeys(entry for one in manifests for entry in one.data)),
            recipe="the mean of "
            + ", ".join(
                f"{share:.3g} of {one.name} ({one.sha256[:8]})"
                for share, one in zip(shares, manifests, strict=True)
            ),
        ),
        path,
    )


def convert_published(pth: Path, path: Path) -> Manifest:
    """Turns the released `.pth` into a safetensors file in fp32, with its manifest beside it.

    Raises:
        WeightsFileError: as `load_network`.
    """
    network, manifest = load_network(pth)
    return save_network(network, replace(manifest, sha256=""), path, half=False)


def read_published(path: Path) -> tuple[dict[str, Tensor], Manifest]:
    """State dict, by our names, and manifest of a `.pth` in the naming of the released weights (`stm-r50`).

    A `module.` prefix may stand before each name. The file is read without executing pickled code.

    Raises:
        WeightsFileError: if it is not a plain state dict of tensors, or a name is unknown or missing.
    """
    import torch

    from model.network.stm import SpaceTimeMemoryNetwork

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:  # its text explains how to run the code nevertheless; that is not shown
        raise WeightsFileError(
            f"{path}: holds more than plain tensors, or is not a PyTorch file; "
            "code inside a weights file is never run. Get the file from its authors again"
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsFileError(
            f"{path}: cannot be read as plain tensors ({what}); code inside a weights file is never run. "
            "Get the file from its authors again"
        ) from None
    if isinstance(loaded, dict) and "state_dict" in loaded:
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(isinstance(v, torch.Tensor) for v in loaded.values()):
        raise WeightsFileError(f"{path}: is not a state dict of tensors")
    network = SpaceTimeMemoryNetwork(network_config("stm-r50"))
    expected = network.state_dict()
    state: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in loaded.items():
        ours = from_published_name(str(name).removeprefix("module."))
        if ours in expected:
            state[ours] = (
                tensor.reshape(expected[ours].shape) if tensor.numel() == expected[ours].numel() else tensor
            )
        else:
            unknown.append(str(name))
    missing = [k for k in expected if k not in state and not k.endswith("num_batches_tracked")]
    if unknown or missing:
        raise WeightsFileError(
            f"{path}: is not the released STM network: {len(missing)} tensors missing "
            f"(first: {missing[:1]}), {len(unknown)} unknown (first: {unknown[:1]})"
        )
    for name, tensor in expected.items():
        state.setdefault(name, tensor)
    manifest = Manifest(
        name=path.stem,
        architecture="stm-r50",
        licence=PUBLISHED_LICENCE,
        data=PUBLISHED_DATA,
        recipe="as published (Oh et al., ICCV 2019)",
        sha256=_sha256(path),
    )
    return state, manifest


_PUBLISHED_NAMES = (
    (r"^Encoder_M\.conv1_m\.", "memory_encoder.mask_stem."),
    (r"^Encoder_M\.conv1_o\.", "memory_encoder.others_stem."),
    (r"^Encoder_M\.(mean|std)$", r"memory_encoder.normalise.\1"),
    (r"^Encoder_M\.", "memory_encoder.trunk."),
    (r"^Encoder_Q\.(mean|std)$", r"query_encoder.normalise.\1"),
    (r"^Encoder_Q\.", "query_encoder.trunk."),
    (r"^KV_M_r4\.Key\.", "memory_key_value.key."),
    (r"^KV_M_r4\.Value\.", "memory_key_value.value."),
    (r"^KV_Q_r4\.Key\.", "query_key_value.key."),
    (r"^KV_Q_r4\.Value\.", "query_key_value.value."),
    (r"^Decoder\.convFM\.", "decoder.conv."),
    (r"^Decoder\.ResMM\.", "decoder.residual."),
    (r"^Decoder\.RF3\.convFS\.", "decoder.refine_eighth.skip_conv."),
    (r"^Decoder\.RF3\.ResFS\.", "decoder.refine_eighth.skip_residual."),
    (r"^Decoder\.RF3\.ResMM\.", "decoder.refine_eighth.residual."),
    (r"^Decoder\.RF2\.convFS\.", "decoder.refine_quarter.skip_conv."),
    (r"^Decoder\.RF2\.ResFS\.", "decoder.refine_quarter.skip_residual."),
    (r"^Decoder\.RF2\.ResMM\.", "decoder.refine_quarter.residual."),
    (r"^Decoder\.pred2\.", "decoder.predict."),
)


def from_published_name(name: str) -> str:
    """A tensor name of the released weights in this project's naming; an unknown name is returned
    unchanged."""
    for pattern, ours in _PUBLISHED_NAMES:
        renamed, count = re.subn(pattern, ours, name)
        if count:
            return renamed
    return name


def _save_state(state: dict[str, Tensor], manifest: Manifest, path: Path) -> None:
    from safetensors.torch import save_file

    stated = {k: v for k, v in manifest.to_dict().items() if k != "sha256"}
    save_file(state, path, metadata={"manifest": json.dumps(stated)})


def _read_safetensors_manifest(path: Path) -> Manifest:
    try:
        with safe_open(path, framework="np") as stream:
            metadata = stream.metadata() or {}
        sha256 = _sha256(path)
    except (SafetensorError, OSError) as error:
        raise WeightsFileError(
            f"{path}: is damaged, or is not a safetensors file ({error}); get the file again"
        ) from None
    if "manifest" not in metadata:
        raise WeightsFileError(
            f"{path}: carries no manifest, so its architecture and licence are unknown; "
            "export it with `stm weights export`"
        )
    try:
        return replace(Manifest.from_dict(json.loads(metadata["manifest"])), sha256=sha256)
    except ValueError as error:
        raise WeightsFileError(f"{path}: its manifest cannot be used ({error}); get the file again") from None


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], Manifest]:
    manifest = _read_safetensors_manifest(path)
    with safe_open(path, framework="pt") as stream:
        return {name: stream.get_tensor(name) for name in stream.keys()}, manifest  # noqa: SIM118


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
