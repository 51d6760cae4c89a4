"""Removing an installation: its files outside its folder, then the folder. Shots and caches are kept."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from stm_plugin.installation.hosts import remove_hosts
from stm_plugin.installation.prefix import (
    HOSTS,
    LOCK,
    LOG,
    PRODUCT,
    RECORD,
    REZ,
    STAMPS,
    InstallationError,
    Prefix,
    leads_to,
    remove_tree,
    write_atomically,
)
from stm_plugin.installation.programs import ticking

DEMOS = "demos.json"  # the files of demos, with size and time
MADE = ("tmp", "cache", "nuke", "ofx_bridge", "locks", "bin", STAMPS, DEMOS, LOG)


def uninstall(prefix: Prefix, link_folder: Path | None) -> None:
    """Remove everything that was installed; shot stores and pip's cache are kept.

    Args:
        link_folder: a folder that may hold a link to the command, besides the one in the record.

    Raises:
        InstallationError: the folder holds no installation; nothing was removed.
    """
    root = prefix.root
    if not root.exists() or not prefix.foreign():
        print(f"{PRODUCT} is not installed at {root}.")
        return
    if not prefix.is_installation:
        raise InstallationError(
            f"{root} holds no installation of {PRODUCT}; nothing was removed.",
            hint="Name the folder of the installation with --prefix.",
        )
    print(f"{PRODUCT}: removing the installation in {root}", flush=True)
    with prefix.locked():
        remove_hosts(prefix, (*HOSTS, REZ))
        remove_command_link(prefix, link_folder)
        remove_demos(prefix)
        made = prefix.listed("made_folders")
        with ticking("removing the private environment"):
            for folder in root.glob("env-*"):
                remove_tree(folder)
        print("  private environment: removed", flush=True)
        for name in (*MADE, RECORD):
            remove_tree(root / name)
        left = sorted(item.name for item in root.iterdir() if item.name != LOCK)
        (root / LOCK).unlink()
    if left:
        print(f"Uninstalled. Left in {root}, since no installer made it: {', '.join(left)}")
        return
    for folder in (root, *sorted(map(Path, made), key=lambda path: len(path.parts), reverse=True)):
        with contextlib.suppress(OSError):  # it holds other files by now
            folder.rmdir()
    print(f"Uninstalled from {root}. Shot stores and caches are yours and were not touched.")


def remove_command_link(prefix: Prefix, link_folder: Path | None) -> None:
    """Remove the links to this installation's command."""
    places = {Path(word) for word in [prefix.record().get("link")] if isinstance(word, str)}
    places |= set() if link_folder is None else {link_folder / "stm"}
    for place in sorted(places):
        with contextlib.suppress(OSError):
            if leads_to(place, prefix.launcher):
                place.unlink()
                print(f"  {place}: removed", flush=True)


# --- the demo's results -------------------------------------------------------------------------------------


@contextlib.contextmanager
def remembering_demo(prefix: Prefix, out: Path) -> Iterator[None]:
    """Record which files a demo makes in `out` while the block runs, so that they can be removed."""
    made_folder = not out.exists()
    before = {} if made_folder else _files(out)
    try:
        yield
    finally:
        written = {name: about for name, about in _files(out).items() if before.get(name) != about}
        demos = _demos(prefix)
        known = demos.get(str(out), {})
        demos[str(out)] = {**known, **written}
        with contextlib.suppress(OSError):
            write_atomically(prefix.root / DEMOS, json.dumps(demos).encode("utf-8"))


def remove_demos(prefix: Prefix) -> None:
    """Remove the files that demos wrote and that were not changed since, and empty folders."""
    for folder, files in _demos(prefix).items():
        out = Path(folder)
        now = _files(out)
        for name, about in files.items():
            if now.get(name) == about:
                with contextlib.suppress(OSError):
                    (out / name).unlink()
        if out.is_dir():
            for below in sorted((one for one in out.rglob("*") if one.is_dir()), reverse=True):
                _remove_if_empty(below)
            _remove_if_empty(out)
        if out.exists():
            print(f"  {out}: kept, as it holds files that the demo did not write", flush=True)
        elif files:
            print(f"  {out}: removed", flush=True)


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _demos(prefix: Prefix) -> dict[str, dict[str, list[int]]]:
    """Folder -> file -> size and time, of all demos; empty if the list cannot be read."""
    try:
        demos = json.loads((prefix.root / DEMOS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return demos if isinstance(demos, dict) else {}


def _files(folder: Path) -> dict[str, list[int]]:
    """The files below a folder, with their sizes and times."""
    found = {}
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            about = path.lstat()
            if not path.is_dir() or path.is_symlink():
                found[path.relative_to(folder).as_posix()] = [about.st_size, about.st_mtime_ns]
    return found
