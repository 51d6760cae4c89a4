"""A bake replaces mattes of STM and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from stm_nuke import cache
from stm_nuke.errors import CacheError

MATTE = b"\x76\x2f\x31\x01\x02\x00\x00\x00stm:address\0string\0"
RENDER = b"\x76\x2f\x31\x01\x02\x00\x00\x00channels\0chlist\0"


def test_a_matte_of_stm_may_be_replaced_and_so_may_nothing(tmp_path: Path) -> None:
    (tmp_path / "m.exr").write_bytes(MATTE)
    cache.check_replaceable(tmp_path / "m.exr", 1001)
    cache.check_replaceable(tmp_path / "new.exr", 1001)


@pytest.mark.parametrize("content", [RENDER, b"", b"stm:address\0 in a text"])
def test_a_file_of_somebody_else_is_not_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.exr").write_bytes(content)
    with pytest.raises(CacheError, match=r"frame 1001.*m\.exr is not a matte that STM made"):
        cache.check_replaceable(tmp_path / "m.exr", 1001)


def test_a_folder_or_a_link_to_nothing_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder.exr").mkdir()
    (tmp_path / "link.exr").symlink_to(tmp_path / "nowhere.exr")
    for name in ("folder.exr", "link.exr"):
        with pytest.raises(CacheError):
            cache.check_replaceable(tmp_path / name, 1001)
