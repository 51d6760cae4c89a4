"""STM for Nuke, from Python inside Nuke. Names are loaded when they are used.

import stm_nuke
node = stm_nuke.create(plate, roto)
stm_nuke.set_key(node, 1001)
stm_nuke.propagate(node)            # waits for its end
nuke.execute(write, 1001, 1100)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stm_nuke.batch import (
        bake,
        check_plate,
        create,
        delete_key,
        farm_bundle,
        find,
        find_all,
        keys_from_roto,
        list_keys,
        propagate,
        set_key,
        set_keys_from_files,
        status,
        update_keys,
    )
    from stm_nuke.errors import StmNodeError

__all__ = [
    "StmNodeError",
    "bake",
    "check_plate",
    "create",
    "delete_key",
    "farm_bundle",
    "find",
    "find_all",
    "keys_from_roto",
    "list_keys",
    "propagate",
    "set_key",
    "set_keys_from_files",
    "status",
    "update_keys",
]


def __getattr__(name: str) -> Any:
    """Load the batch functions, which need Nuke, when they are first used."""
    if name == "StmNodeError":
        from stm_nuke import errors

        return errors.StmNodeError
    if name in __all__:
        from stm_nuke import batch

        return getattr(batch, name)
    raise AttributeError(f"module 'stm_nuke' has no attribute {name!r}")
