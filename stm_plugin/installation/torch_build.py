"""The build of torch: what the package registry holds for a system, what is wanted, and what was got.

`--torch cpu` and `--torch cuda` state what is wanted. Where the registry's build is another one, an index
that holds the wanted one has to be named: this project knows no address.
"""

from __future__ import annotations

import ctypes
import re
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from stm_plugin.installation.prefix import InstallationError

AUTO: Final = "auto"
CPU: Final = "cpu"
CUDA: Final = "cuda"
CHOICES: Final = (AUTO, CPU, CUDA)
INDEX_VARIABLE: Final = "STM_TORCH_INDEX"
"""Names the index of another build, where --torch-index does not."""

_OF_REGISTRY: Final[Mapping[str, str]] = {"linux": CUDA, "win32": CPU, "darwin": CPU}
"""The registry's build by `sys.platform`. The one for macOS uses an Apple GPU, too."""
_SYSTEMS: Final[Mapping[str, str]] = {"linux": "Linux", "win32": "Windows", "darwin": "macOS"}
_WORDS: Final[Mapping[str, str]] = {CPU: "the build for CPUs", CUDA: "a build with CUDA"}
_VERSION_FILE: Final = "torch/version.py"
_FIELD: Final = re.compile(r"^(cuda|hip|xpu)\b[^=\n]*= *'([^']+)'", re.MULTILINE)


def check_wanted(wanted: str, index: str, system: str) -> None:
    """Ask, before anything is fetched, whether the wanted build can be had.

    Args:
        wanted: one of CHOICES.
        index: the index of another build; empty for the registry's own.
        system: as `sys.platform` has it.

    Raises:
        InstallationError: it cannot be; the hint says what to give.
    """
    if wanted == AUTO or (index and system != "darwin"):
        return
    has = _OF_REGISTRY.get(system)
    if wanted == CUDA and system == "darwin":
        raise InstallationError("There is no CUDA on macOS.", hint="Leave --torch out: one build serves all.")
    if wanted != has:
        name = _SYSTEMS.get(system, system)
        held = _WORDS.get(has or "", "an unknown build")
        raise InstallationError(
            f"The package registry holds {held} of torch for {name}, and not {_WORDS[wanted]}.",
            hint=f"Name an index that holds it, PyTorch's own or your mirror: --torch {wanted} --torch-index "
            f"URL, or {INDEX_VARIABLE}=URL. docs/studio.md says how large each build is.",
        )


def build_of(version_file: str) -> str:
    """The build that the text of torch/version.py states: cpu, cuda, hip or xpu."""
    found = _FIELD.search(version_file)
    return found[1] if found else CPU


def check_installed(wanted: str, site: Path, index: str) -> None:
    """Ask whether the installed torch is the wanted build.

    Args:
        site: the folder of the packages.
        index: where it came from; empty for the registry.

    Raises:
        InstallationError: it is another one, or there is none.
    """
    if wanted == AUTO:
        return
    try:
        text = (site / _VERSION_FILE).read_text(encoding="utf-8")
    except OSError as error:
        raise InstallationError(f"There is no torch in {site}.", hint="Run this again.") from error
    _check(wanted, text, index)


def check_collected(wanted: str, wheels: Path, index: str) -> None:
    """Ask whether the torch in a folder of wheels is the wanted build. InstallationError if it is not."""
    if wanted == AUTO:
        return
    for wheel in wheels.glob("torch-*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            _check(wanted, archive.read(_VERSION_FILE).decode("utf-8"), index)


def _check(wanted: str, version_file: str, index: str) -> None:
    found = build_of(version_file)
    if found != wanted:
        whose = f"The torch of {index}" if index else "The registry's torch"
        raise InstallationError(
            f"{whose} is {_WORDS.get(found, f'a build for {found}')}, and --torch {wanted} was asked for.",
            hint=f"Name an index that holds {_WORDS[wanted]} with --torch-index, or take this one with "
            f"--torch {AUTO if found not in CHOICES else found}.",
        )


def advice(system: str, wanted: str, index: str, has_driver: bool) -> str:
    """What is to be known of the registry's build before it is fetched; empty where it fits.

    Args:
        system, wanted, index: as in `check_wanted`.
        has_driver: whether NVIDIA's driver is on this machine.
    """
    if index or wanted != AUTO:
        return ""
    if system == "win32" and has_driver:
        return (
            "The registry's build of torch for Windows has no CUDA: the NVIDIA card would not be used. "
            "--torch cuda --torch-index URL takes one that has, from an index that holds it (docs/studio.md)."
        )
    if system == "linux" and not has_driver:
        return (
            "The registry's build of torch for Linux brings 4 GB for NVIDIA cards, and there is no driver of "
            "such a card here. --torch cpu --torch-index URL takes the build for CPUs, from an index that "
            "holds it (docs/studio.md)."
        )
    return ""


def has_nvidia_driver() -> bool:
    """Whether NVIDIA's driver can be loaded."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True
