"""Build STM.ofx.bundle without CMake: `python ofx_bridge/build.py --output DIR [--target TARGET]`.

Needs Python 3.9 or newer, the package `nlohmann-json` (or the system's headers) and a C++17 compiler: the
one in the package `ziglang`, which also compiles for other systems, else c++, g++ or clang++.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

BRIDGE = Path(__file__).resolve().parent
BUNDLE_NAME = "STM.ofx.bundle"
BINARY_NAME = "STM.ofx"
GLIBC_FLOOR = (2, 17)
WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror")
COMMON_SOURCES = (
    "connection.cpp",
    "deadline.cpp",
    "effect.cpp",
    "host.cpp",
    "node.cpp",
    "parameters.cpp",
    "pixels.cpp",
    "plugin.cpp",
    "protocol.cpp",
    "rendering.cpp",
    "shot_session.cpp",
)
_SYSTEM_HEADERS = (Path("/usr/include"), Path("/usr/local/include"), Path("/opt/homebrew/include"))
# Mach-O: the beginning of a binary for one processor, and the table of a universal one (big-endian).
_MACH_O = struct.Struct("<III")  # magic, processor, variant of it
_MACH_O_MAGIC = 0xFEEDFACF
_MACH_O_PAGE_BITS = 14  # the largest pages of the processors
_UNIVERSAL_HEADER = struct.Struct(">II")  # magic, how many processors
_UNIVERSAL_ENTRY = struct.Struct(">IIIII")  # processor, variant, offset, size, alignment
_UNIVERSAL_MAGIC = 0xCAFEBABE
_GLIBC_VERSION = re.compile(rb"GLIBC_(\d+)\.(\d+)")


class BuildError(Exception):
    """The bundle cannot be built; the text states the reason and what to do."""


@dataclass(frozen=True)
class Target:
    """A system that the effect is built for.

    Attributes:
        name: what `--target` calls it.
        folder: its folder inside the bundle.
        zig: what zig calls it; several processors are joined into one universal binary.
        sources: the platform's part.
        link: options for the linker.
        tried: whether the result has run in a host, or has only been compiled.
    """

    name: str
    folder: str
    zig: tuple[str, ...]
    sources: tuple[str, ...]
    link: tuple[str, ...]
    tried: bool = False


_EXPORTS = f"-Wl,--version-script={BRIDGE / 'bundle' / 'exports.map'}"
# nodelete: a host that closes the effect before it exits must not jump into unmapped memory.
_ELF_LINK = ("-shared", _EXPORTS, "-Wl,--no-undefined", "-Wl,-z,nodelete", "-ldl", "-lpthread")
_WINDOWS = ("platform_windows.cpp",)
_POSIX = ("platform_posix.cpp",)
_GLIBC = ".".join(map(str, GLIBC_FLOOR))
TARGETS = {
    one.name: one
    for one in (
        Target(
            "linux-x86-64", "Linux-x86-64", (f"x86_64-linux-gnu.{_GLIBC}",), _POSIX, _ELF_LINK, tried=True
        ),
        Target("linux-aarch64", "Linux-aarch64", (f"aarch64-linux-gnu.{_GLIBC}",), _POSIX, _ELF_LINK),
        Target("windows-x86-64", "Win64", ("x86_64-windows-gnu",), _WINDOWS, ("-shared", "-lws2_32")),
        Target("macos", "MacOS", ("aarch64-macos.11.0", "x86_64-macos.10.15"), _POSIX, ("-shared",)),
    )
}


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler: the command and the options that it always needs."""

    command: tuple[str, ...]
    is_zig: bool = False

    def for_target(self, zig_target: str) -> tuple[str, ...]:
        """The command for a system that zig builds for; another compiler builds for this machine."""
        return (*self.command, "-target", zig_target) if self.is_zig else self.command


def host_target() -> Target:
    """The target of this machine.

    Raises:
        BuildError: building the effect is not supported here.
    """
    if platform.system() == "Darwin":
        return TARGETS["macos"]
    machine = {"AMD64": "x86-64", "x86_64": "x86-64", "arm64": "aarch64"}.get(
        platform.machine(), platform.machine()
    )
    system = platform.system().lower()
    found = TARGETS.get(f"{system}-{machine}")
    if found is None:
        raise BuildError(f"The effect is not known to build for {system} on {machine}.")
    return found


def find_compiler(target: Target) -> Compiler:
    """The package `ziglang` if it is installed, else this machine's own compiler.

    Raises:
        BuildError: there is none, or it cannot build for `target`.
    """
    if importlib.util.find_spec("ziglang") is not None:
        return Compiler((sys.executable, "-m", "ziglang", "c++"), is_zig=True)
    if target != host_target():
        raise BuildError(f"Building for {target.name} needs zig: pip install ziglang")
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and shutil.which(name):
            both = ("-arch", "arm64", "-arch", "x86_64") if target.folder == "MacOS" else ()
            return Compiler((name, *both))
    raise BuildError("There is no C++ compiler: pip install ziglang, or install g++.")


def find_json_headers() -> Path:
    """The folder that holds nlohmann/json.hpp.

    Raises:
        BuildError: it is nowhere.
    """
    package = importlib.util.find_spec("nlohmann_json")
    folders = [Path(one) / "include" for one in (package.submodule_search_locations or [])] if package else []
    for folder in (*folders, *_SYSTEM_HEADERS):
        if (folder / "nlohmann" / "json.hpp").is_file():
            return folder
    raise BuildError("The JSON headers are missing: pip install nlohmann-json")


def compile_together(
    command: Sequence[str], sources: Iterable[Path], result: Path, options: Sequence[str]
) -> Path:
    """Compile sources as one unit (the JSON headers are read once) into the object file `result`.

    Raises:
        BuildError: the compiler refuses; its words are in the text.
    """
    unit = result.with_suffix(".cpp")
    unit.write_text("".join(f'#include "{source.as_posix()}"\n' for source in sources), encoding="utf-8")
    language = ("-std=c++17", "-fvisibility=hidden", "-fvisibility-inlines-hidden", *WARNINGS)
    headers = ("-isystem", str(find_json_headers()))
    _run((*command, *language, *options, *headers, "-c", str(unit), "-o", str(result)))
    return result


def build(
    output: Path, target: Target | None = None, options: Sequence[str] = (), compiler: Compiler | None = None
) -> Path:
    """Build the bundle, or add one system to an existing bundle.

    Args:
        output: the folder that is to hold STM.ofx.bundle.
        target: what to build for; this machine if None.
        options: more options for the compiler and the linker.
        compiler: what to build with; `find_compiler` if None.

    Returns:
        The bundle.

    Raises:
        BuildError: it cannot be built.
    """
    target = target or host_target()
    compiler = compiler or find_compiler(target)
    bundle = output / BUNDLE_NAME
    binary = bundle / "Contents" / target.folder / BINARY_NAME
    position = () if target.folder == "Win64" else ("-fPIC",)
    own_runtime = ("-static-libstdc++", "-static-libgcc")
    static = () if compiler.is_zig or target.folder == "MacOS" else own_runtime
    strip = ("-s",) if target.folder != "MacOS" and not options else ()
    with tempfile.TemporaryDirectory(prefix="stm-ofx-") as name:
        sources = [BRIDGE / "source" / one for one in (*COMMON_SOURCES, *target.sources)]
        slices = []
        for processor in target.zig if compiler.is_zig else target.zig[:1]:
            command = compiler.for_target(processor)
            unit = compile_together(
                command, sources, Path(name) / f"{processor}.o", ("-O2", *position, *options)
            )
            slices.append(unit.with_suffix(".ofx"))
            _run((*command, str(unit), *target.link, *static, *strip, *options, "-o", str(slices[-1])))
        linked = slices[0] if len(slices) == 1 else join_processors(slices, Path(name) / BINARY_NAME)
        binary.parent.mkdir(parents=True, exist_ok=True)
        fresh = binary.with_name(BINARY_NAME + ".new")
        shutil.copyfile(linked, fresh)
        fresh.chmod(0o755)
        fresh.replace(binary)  # a host that has the old one loaded keeps it
    shutil.copyfile(BRIDGE / "bundle" / "Info.plist", bundle / "Contents" / "Info.plist")
    resources = bundle / "Contents" / "Resources"
    resources.mkdir(exist_ok=True)
    for icon in (BRIDGE / "bundle").glob("*.png"):
        shutil.copyfile(icon, resources / icon.name)
    if compiler.is_zig and target.zig[0].endswith(_GLIBC):
        floor = glibc_needed(binary)
        if floor > GLIBC_FLOOR:
            raise BuildError(f"{binary}: needs glibc {floor[0]}.{floor[1]}, newer than {_GLIBC}.")
    return bundle


def join_processors(slices: Sequence[Path], result: Path) -> Path:
    """Join binaries for macOS of several processors into one universal binary, as `lipo -create` does.

    Raises:
        BuildError: a file is no 64-bit Mach-O binary.
    """
    place = _UNIVERSAL_HEADER.size + len(slices) * _UNIVERSAL_ENTRY.size
    table, body = _UNIVERSAL_HEADER.pack(_UNIVERSAL_MAGIC, len(slices)), b""
    for path in slices:
        content = path.read_bytes()
        magic, processor, variant = _MACH_O.unpack_from(content)
        if magic != _MACH_O_MAGIC:
            raise BuildError(f"{path}: no binary for macOS.")
        padding = -(place + len(body)) % (1 << _MACH_O_PAGE_BITS)
        body += bytes(padding)
        offset = place + len(body)
        table += _UNIVERSAL_ENTRY.pack(processor, variant, offset, len(content), _MACH_O_PAGE_BITS)
        body += content
    result.write_bytes(table + body)
    return result


def glibc_needed(binary: Path) -> tuple[int, int]:
    """The newest glibc version that a Linux binary asks for; (0, 0) if it asks for none."""
    found = _GLIBC_VERSION.findall(binary.read_bytes())
    return max(((int(major), int(minor)) for major, minor in found), default=(0, 0))


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Build from the command line; returns 0 if the bundle was built, else 1."""
    parser = argparse.ArgumentParser(description="Build STM.ofx.bundle.")
    default = BRIDGE.parent / "build" / "ofx"
    parser.add_argument("--output", type=Path, default=default, help="the folder for the bundle")
    parser.add_argument("--target", choices=sorted(TARGETS), help="the system to build for (this one)")
    given = parser.parse_args(arguments)
    try:
        target = TARGETS[given.target] if given.target else host_target()
        bundle = build(given.output, target)
    except BuildError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    note = "" if target.tried else " (compiled only: never tried in a host on that system)"
    print(f"{bundle}: {target.folder}{note}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
