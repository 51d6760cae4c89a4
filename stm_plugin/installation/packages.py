"""Checks whether the packages of an environment are complete. pip takes incomplete ones for installed."""

from __future__ import annotations

from pathlib import Path

from stm_plugin.installation.prefix import ON_WINDOWS, remove_tree


def site_packages(environment: Path) -> Path:
    """The folder of an environment's packages; it does not exist if there is no environment."""
    if ON_WINDOWS:
        return environment / "Lib" / "site-packages"
    return next(environment.glob("lib/python3*/site-packages"), environment / "lib" / "site-packages")


def broken_packages(site: Path, thorough: bool) -> list[Path]:
    """Metadata folders of packages that pip did not finish, or that have lost files since.

    pip writes RECORD last, so a package without one is incomplete, though pip takes it for installed. A
    thorough check also compares every file with its size in RECORD.
    """
    broken = []
    for metadata in site.glob("*.dist-info"):
        record = metadata / "RECORD"
        if not record.is_file() or (thorough and not _files_match(site, record)):
            broken.append(metadata)
    return sorted(broken)


def _files_match(site: Path, record: Path) -> bool:
    """Whether every file of a package exists with the size that its RECORD states."""
    for line in record.read_text(encoding="utf-8").splitlines():
        name, _, size = line.rsplit(",", 2)
        path = site / name.strip('"')
        if size and (not path.is_file() or path.stat().st_size != int(size)):
            return False
    return True


def clear_broken_packages(site: Path) -> None:
    """Make pip take incomplete and damaged packages for missing; remove its temporary folders."""
    for metadata in broken_packages(site, thorough=True):
        remove_tree(metadata)
    for aside in site.glob("~*"):
        remove_tree(aside)
