"""The effect's protocol reader and pixel arithmetic, with address and undefined-behaviour sanitizers."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import tomllib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tests.hosts.ofx_fixtures import REPOSITORY, load_build
from tests.hosts.ofx_sanitizers import SANITIZE, sanitizing_compiler

FUZZ_SECONDS = 8.0
FUZZ_SEED = 20190404
SECTION = re.compile(r"## 11\. Vectors.*?```\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The driver program, sanitized."""
    compiler = sanitizing_compiler()
    build, folder = load_build(), tmp_path_factory.mktemp("shim")
    sources = [REPOSITORY / "ofx_bridge" / "source" / name for name in ("protocol.cpp", "pixels.cpp")]
    sources.append(REPOSITORY / "tests" / "ofx_bridge" / "shim_driver.cpp")
    options = ("-O1", "-g1", *SANITIZE, f"-I{REPOSITORY / 'ofx_bridge' / 'source'}")
    unit = build.compile_together((compiler,), sources, folder / "driver.o", options)
    program = folder / "driver"
    subprocess.run([compiler, str(unit), *SANITIZE, "-o", str(program)], check=True)
    return program


def drive(driver: Path, *arguments: str, given: bytes) -> bytes:
    """The driver's output; a sanitizer's finding fails the test."""
    done = subprocess.run([str(driver), *arguments], input=given, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert done.stderr == b"", done.stderr.decode(errors="replace")
    return done.stdout


@pytest.fixture(scope="module")
def vectors() -> dict[str, str]:
    """The protocol's own vectors: name -> hex."""
    found = SECTION.search((REPOSITORY / "ofx_bridge" / "PROTOCOL.md").read_text("utf-8"))
    assert found is not None
    return dict(line.split(" ", 1) for line in found[1].strip().splitlines())


def test_reader_judges_every_vector_of_the_protocol(driver: Path, vectors: dict[str, str]) -> None:
    lines = "".join(f"{name} {hexadecimal}\n" for name, hexadecimal in vectors.items()).encode()
    told = dict(line.split(" ", 1) for line in drive(driver, "vectors", given=lines).decode().splitlines())
    assert told.keys() == vectors.keys()
    for name, verdict in told.items():
        assert verdict.startswith("ok " if name.startswith("ok-") else "framing "), f"{name}: {verdict}"
    assert told["ok-reply-with-payload"] == 'ok 2 7 4 {"frame":-3}'


def test_reader_and_pixels_survive_fuzzing(driver: Path, vectors: dict[str, str]) -> None:
    lines = "".join(f"{name} {hexadecimal}\n" for name, hexadecimal in vectors.items()).encode()
    told = drive(driver, "fuzz", str(FUZZ_SEED), str(FUZZ_SECONDS), given=lines).decode()
    rounds, messages, refused = map(int, re.findall(r"\d+", told))
    assert rounds > 0 and messages > 0 and refused > 0, told


def test_every_half_becomes_the_float_that_numpy_says(driver: Path) -> None:
    halves = np.arange(1 << 16, dtype=np.uint16)
    floats = np.frombuffer(drive(driver, "from-half", given=halves.tobytes()), np.float32)
    np.testing.assert_array_equal(floats, halves.view(np.float16).astype(np.float32))


def test_floats_become_the_half_that_numpy_says(driver: Path, rng: np.random.Generator) -> None:
    bits = rng.integers(0, 1 << 32, 200_000, dtype=np.uint32)
    near = (np.arange(-400, 400, dtype=np.float32) / 64).view(np.uint32)
    ties = (np.arange(0, 1 << 15, 7, dtype=np.uint32) << 13) + 0x38001000
    floats: npt.NDArray[np.float32] = np.concatenate([bits, near, ties.astype(np.uint32)]).view(np.float32)
    halves = np.frombuffer(drive(driver, "to-half", given=floats.tobytes()), np.float16)
    with np.errstate(over="ignore"):
        expected = floats.astype(np.float16)
    numbers = ~np.isnan(floats)
    np.testing.assert_array_equal(halves[numbers].view(np.uint16), expected[numbers].view(np.uint16))
    assert np.isnan(halves[~numbers]).all()


@pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")
def test_cmake_builds_what_the_build_script_builds() -> None:
    build = load_build()
    text = (REPOSITORY / "ofx_bridge" / "CMakeLists.txt").read_text("utf-8")
    library = re.search(r"add_library\(STM MODULE(.*?)\)", text, re.DOTALL)
    assert library is not None
    assert sorted(re.findall(r"source/(\S+\.cpp)", library[1])) == sorted(build.COMMON_SOURCES)
    assert all(flag in text for flag in build.WARNINGS)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")
def test_cmake_build_is_free_of_warnings(tmp_path: Path) -> None:
    headers = load_build().find_json_headers()
    environment = {**os.environ, "CMAKE_BUILD_PARALLEL_LEVEL": "1"}
    configure = [
        "cmake",
        "-S",
        str(REPOSITORY / "ofx_bridge"),
        "-B",
        str(tmp_path),
        f"-DNLOHMANN_JSON_INCLUDE={headers}",
    ]
    for command in (configure, ["cmake", "--build", str(tmp_path)]):
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warning" not in (done.stdout + done.stderr).lower()
    assert (tmp_path / "STM.ofx.bundle" / "Contents" / "Info.plist").is_file()
    assert list((tmp_path / "STM.ofx.bundle" / "Contents").glob("*/STM.ofx"))


def test_bundle_has_the_standards_layout_and_the_old_glibc(effect_binary: Path) -> None:
    build = load_build()
    contents = effect_binary.parents[1]
    assert contents.parent.name == "STM.ofx.bundle" and contents.name == "Contents"
    assert effect_binary.parent.name == build.host_target().folder
    assert (contents / "Info.plist").is_file()
    assert (contents / "Resources" / "org.stm-for-nuke.STM.png").is_file()
    if build.find_compiler(build.host_target()).is_zig:
        assert (2, 2) <= build.glibc_needed(effect_binary) <= (2, 17)


MACH_O = struct.Struct("<III")
ARM64, X86_64 = 0x0100000C, 0x01000007


def test_binaries_for_macos_of_both_processors_become_one(tmp_path: Path) -> None:
    """The file is read as the loader reads it: a table of processors, each part at the start of a page."""
    build = load_build()
    slices = []
    for processor, size in ((ARM64, 40_000), (X86_64, 12_345)):
        slices.append(tmp_path / f"{processor}.ofx")
        slices[-1].write_bytes(MACH_O.pack(0xFEEDFACF, processor, 3) + bytes(size) + b"end")
    whole = build.join_processors(slices, tmp_path / "STM.ofx").read_bytes()
    magic, count = struct.unpack_from(">II", whole)
    assert (magic, count) == (0xCAFEBABE, 2)
    for number, one in enumerate(slices):
        processor, variant, offset, size, page_bits = struct.unpack_from(">IIIII", whole, 8 + 20 * number)
        assert (processor, variant) == ((ARM64, X86_64)[number], 3)
        assert offset % (1 << page_bits) == 0 and page_bits >= 14
        assert whole[offset : offset + size] == one.read_bytes()
    slices[0].write_bytes(b"\x7fELF" + bytes(64))
    with pytest.raises(build.BuildError, match="no binary for macOS"):
        build.join_processors(slices, tmp_path / "STM.ofx")


def test_what_was_never_loaded_is_told_apart() -> None:
    targets = load_build().TARGETS
    assert [name for name, target in targets.items() if target.tried] == ["linux-x86-64"]
    assert len({target.folder for target in targets.values()}) == len(targets), "one would replace another"


def test_the_effects_version_is_the_products() -> None:
    about = (REPOSITORY / "ofx_bridge" / "source" / "version.h").read_text("utf-8")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    assert f'versionLabel = "{project["version"]}"' in about
