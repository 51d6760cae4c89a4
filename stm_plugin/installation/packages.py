"""Whether the packages of an environment are whole. pip takes one that was half written for installed."""

from __future__ import annotations

from pathlib import Path

from stm_plugin.installation.prefix import ON_WINDOWS, remove_tree


def site_packages(environment: Path) -> Path:
    """Where an environment's packages lie; a folder that does not exist if there is no environment."""
    if ON_WINDOWS:
        return environment / "Lib" / "site-packages"
    return next(environment.glob("lib/python3*/site-packages"), environment / "lib" / "site-packages")


def broken_packages(site: Path, thorough: bool) -> list[Path]:
    """Metadata folders of packages that pip did not finish, or that have lost files since.

    pip writes RECORD at the very end, so a package without one was interrupted, though pip would take it for
    installed. A thorough look also compares every file with its size in RECORD.
    """
    broken = []
    for metadata in site.glob("*.dist-info"):
        record = metadata / "RECORD"
        if not record.is_file() or (thorough and not _files_match(site, record)):
            broken.append(metadata)
    return sorted(broken)


def _files_match(site: Path, record: Path) -> bool:
    """Whether every file of a package is there in the size that its RECORD states."""
    for line in record.read_text(encoding="utf-8").splitlines():
        name, _, size = line.rsplit(",", 2)
        path = site / name.strip('"')
        if size and (not path.is_file() or path.stat().st_size != int(size)):
            return False
    return True


def clear_broken_packages(site: Path) -> None:
    """Make pip see unfinished and damaged packages as missing; remove what it set aside meanwhile."""
    for metadata in broken_packages(site, thorough=True):
        remove_tree(metadata)
    for aside in site.glob("~*"):
        remove_tree(aside)
