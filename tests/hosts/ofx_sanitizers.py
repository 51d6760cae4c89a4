"""The effect with address and undefined-behaviour sanitizers."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hosts.ofx_fixtures import load_build

SANITIZE = (
    "-fsanitize=address,undefined,float-cast-overflow",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
)


def sanitizing_compiler() -> str:
    """A g++ whose sanitizers can be preloaded, or a skip."""
    found = shutil.which("g++")
    if sys.platform != "linux" or found is None:
        pytest.skip("g++ is not installed: the sanitizers come with it")
    return found


def runtime_library() -> Path:
    """The address sanitizer's library, to be preloaded into a host that was built without it."""
    asked = [sanitizing_compiler(), "-print-file-name=libasan.so"]
    path = Path(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip())
    if not path.is_absolute() or not path.exists():
        pytest.skip("the address sanitizer's library is not installed")
    return path.resolve()


def build_sanitized(folder: Path) -> Path:
    """The effect's binary with sanitizers."""
    build = load_build()
    target = build.host_target()
    compiler = build.Compiler((sanitizing_compiler(),))
    # -shared-libasan's way for g++: the runtime is preloaded, so that symbols of it stay open in the link.
    bundle: Path = build.build(folder, target, ("-O1", "-g1", *SANITIZE, "-Wl,-z,undefs"), compiler)
    binary: Path = bundle / "Contents" / target.folder / build.BINARY_NAME
    return binary
