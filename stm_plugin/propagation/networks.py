"""Networks ready to run, loaded once per process and shared by its shots."""

from __future__ import annotations

import threading
from functools import lru_cache
from pathlib import Path

import torch

from model.inference.edges import FastRefiner
from model.inference.fast_network import FastNetwork, Precision
from model.network.stm import SpaceTimeMemoryNetwork
from model.training.adapt import with_adaptation
from model.weights_file import (
    Manifest,
    WeightsFileError,
    find_edges,
    find_weights,
    load_network,
    load_refiner,
    read_edges_manifest,
    read_manifest,
)
from stm_plugin.errors import WeightsError
from stm_plugin.propagation.adaptation import read_adaptation
from stm_plugin.propagation.memory_forecast import device_errors

_NETWORKS_HELD = 2
_loading = threading.Lock()


def weights_manifest(name: str) -> Manifest:
    """The manifest of a weights file.

    Args:
        name: a shipped name, or a path.

    Raises:
        WeightsError: it does not exist or cannot be used.
    """
    try:
        path = find_weights(name).resolve()
        return _manifest(str(path), path.stat().st_mtime_ns)
    except (WeightsFileError, OSError) as error:
        raise _weights_error(name, error) from error


def ready_network(
    name: str, device: str, precision: Precision, adaptation: Path | None = None, expects: str = ""
) -> FastNetwork:
    """The network of a weights file on a device.

    Args:
        adaptation: file of an adaptation to a shot (`stm_plugin.propagation.adaptation`).
        expects: the identity of the weights (`Manifest.id`) if a plan was made with them.

    Raises:
        WeightsError: a file does not exist or cannot be used, or holds other weights than expected.
        DeviceError: the device does not take it.
    """
    try:
        path = find_weights(name).resolve()
        with _loading:
            changed = path.stat().st_mtime_ns
            network, id_ = _network(str(path), changed, device, precision, adaptation)
        if path.stat().st_mtime_ns != changed or (expects and expects != id_):
            raise changed_weights(path)
        return network
    except (WeightsFileError, OSError) as error:
        raise _weights_error(name, error) from error


def refiner_manifest(name: str) -> Manifest:
    """The manifest of the weights file of an edge refiner.

    Raises:
        WeightsError: it does not exist or cannot be used.
    """
    try:
        path = find_edges(name).resolve()
        return _refiner_manifest(str(path), path.stat().st_mtime_ns)
    except (WeightsFileError, OSError) as error:
        raise _weights_error(name, error) from error


def ready_refiner(name: str, device: str, precision: Precision = "float32") -> FastRefiner:
    """The edge refiner of a weights file on a device.

    Raises:
        WeightsError: the file does not exist or cannot be used.
        DeviceError: the device does not take it.
    """
    try:
        path = find_edges(name).resolve()
        with _loading:
            return _refiner(str(path), path.stat().st_mtime_ns, device, precision)
    except (WeightsFileError, OSError) as error:
        raise _weights_error(name, error) from error


def exact_results(device: str) -> None:
    """Set a device up so that equal runs give equal bytes, and float32 is computed in float32."""
    if device.startswith("cuda"):
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False


def base_network(name: str) -> SpaceTimeMemoryNetwork:
    """The network of a weights file, to be trained further.

    Raises:
        WeightsError: the file does not exist or cannot be used.
    """
    try:
        return load_network(name)[0]
    except (WeightsFileError, OSError) as error:
        raise _weights_error(name, error) from error


@lru_cache(maxsize=16)
def _manifest(path: str, changed: int) -> Manifest:
    return read_manifest(path)


@lru_cache(maxsize=16)
def _refiner_manifest(path: str, changed: int) -> Manifest:
    return read_edges_manifest(path)


@lru_cache(maxsize=_NETWORKS_HELD)
def _refiner(path: str, changed: int, device: str, precision: Precision) -> FastRefiner:
    refiner, _ = load_refiner(path)
    exact_results(device)
    with device_errors(device):
        return FastRefiner(refiner, device, precision)


@lru_cache(maxsize=_NETWORKS_HELD)
def _network(
    path: str, changed: int, device: str, precision: Precision, adaptation: Path | None
) -> tuple[FastNetwork, str]:
    """The network, and the identity of its weights."""
    network, manifest = load_network(path)
    if adaptation is not None:
        try:
            network = with_adaptation(network, read_adaptation(adaptation))
        except ValueError as error:
            raise WeightsError(
                f"The adaptation does not fit these weights: {error}.",
                path=adaptation,
                hint="Run `stm adapt` again, or continue without: `stm shot set SHOT adapt=false`.",
            ) from error
    exact_results(device)
    with device_errors(device):
        return FastNetwork(network, device=device, precision=precision), manifest.id


def changed_weights(path: str | Path) -> WeightsError:
    """The error where a weights file was replaced after a plan was made with it."""
    return WeightsError(
        "The file of the weights was replaced during the run.",
        path=path,
        hint="Run again: the frames are computed with the weights that are there then.",
    )


def _weights_error(name: str, error: Exception) -> WeightsError:
    return WeightsError(f"{error}.", hint=f"`stm info` lists the installed weights ({name} was requested).")
