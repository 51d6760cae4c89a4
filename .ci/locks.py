"""Makes the lock files of locks/ from the lists of pyproject.toml: `python .ci/locks.py [--upgrade]`.

Every release is named exactly, with the hash of every file that its registry holds of it, so that one set of
locks serves every system and every Python from 3.11 on. Releases stay unless --upgrade is given or a list
asks for others. Needs uv (`pip install uv`).
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ROOT / "locks"
OLDEST_PYTHON = "3.11"
EXTRAS = {
    "engine": ("build",),
    "demo": ("demo",),
    "train": ("train",),
    "ofx": ("ofx",),
    "review": ("review",),
    "test": ("test",),
}
GROUPS = {"test": ("test-alone",)}
NEVER = "sys_platform == 'none'"  # how pyproject.toml says that a package is not to be installed
TORCH = re.compile(r"torch|torchvision|triton|nvidia-.*|cuda-.*")  # what each build of torch has its own of
WORDS = {
    "engine": "What the engine imports, and what that imports in turn, without torch.",
    "torch": "torch, and what its default build brings along. Not used with --torch-index.",
    "demo": "What the demo needs besides the engine's.",
    "train": "What training from the beginning needs besides the engine's.",
    "ofx": "What building the OpenFX effect needs besides the engine's.",
    "review": "What the page of `stm review` needs besides the engine's.",
    "test": "What the checks need besides the engine's.",
}


def compile_lock(output: Path, extras: tuple[str, ...], groups: tuple[str, ...], *more: str) -> None:
    """Resolve the project with some extras and groups; `output` may hold releases to stay with."""
    asked = [f"--extra={extra}" for extra in extras] + [f"--group={group}" for group in groups]
    command = ["uv", "pip", "compile", "pyproject.toml", "--universal", "--generate-hashes", "--quiet"]
    command += [f"--python-version={OLDEST_PYTHON}", "--no-header", f"--output-file={output}"]
    subprocess.run([*command, *asked, *more], cwd=ROOT, check=True)


def entries(lock: str) -> dict[str, str]:
    """Name -> its line with marker and hashes, without the notes on who asked for it."""
    found = {}
    for text in re.split(r"\n(?=[A-Za-z0-9])", "\n" + lock):
        name = re.match(r"\s*([A-Za-z0-9._-]+)==", text)
        if name and NEVER not in text:
            lines = [line for line in text.strip().splitlines() if not line.strip().startswith("#")]
            found[name[1]] = found.get(name[1], "") + "\n".join(lines) + "\n"
    return found


def main() -> None:
    """Resolve everything at once, so that all locks agree, then take each one's part."""
    LOCKS.mkdir(exist_ok=True)
    upgrade = ["--upgrade"] if "--upgrade" in sys.argv[1:] else []
    with tempfile.TemporaryDirectory() as name:
        everything = Path(name) / "all.txt"
        everything.write_text("".join(lock.read_text() for lock in sorted(LOCKS.glob("*.txt"))))
        all_extras = tuple(extra for extras in EXTRAS.values() for extra in extras)
        compile_lock(everything, all_extras, GROUPS["test"], *upgrade)
        parts: dict[str, dict[str, str]] = {}
        for group, extras in EXTRAS.items():
            part = Path(name) / f"{group}.txt"
            part.write_text(everything.read_text())
            compile_lock(part, ("build", *extras), GROUPS.get(group, ()))
            parts[group] = entries(part.read_text())
    engine = parts["engine"]
    for group in parts:
        if group != "engine":
            parts[group] = {one: text for one, text in parts[group].items() if one not in engine}
    parts["torch"] = {one: text for one, text in engine.items() if TORCH.fullmatch(one)}
    parts["engine"] = {one: text for one, text in engine.items() if one not in parts["torch"]}
    for group, lock in parts.items():
        header = f"# {WORDS[group]}\n# Made from pyproject.toml: change that, and run .ci/locks.py again.\n"
        text = header + "".join(lock[one] for one in sorted(lock))
        (LOCKS / f"{group}.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
