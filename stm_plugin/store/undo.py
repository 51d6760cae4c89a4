"""A new store is removed again where the run that made it is refused before there is any result."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stm_plugin.errors import PropagationCancelled
from stm_plugin.store.store import ShotStore


@contextmanager
def removed_where_refused(
    folder: Path, *others: Path, withdraw: Callable[[], None], has_made: Callable[[], bool]
) -> Iterator[None]:
    """Remove what a run has made, where an error ends it before there is any result.

    A folder that existed before is kept. So is a store that a person stopped (its keys are worth keeping), or
    that another process holds.

    Args:
        folder: of the store.
        others: folders beside it that the run may make.
        withdraw: takes back what the run has noted elsewhere.
        has_made: whether the run has written a matte.
    """
    is_new = not folder.exists()
    absent = {one for path in (folder, *others) for one in (path, *path.parents) if not one.exists()}
    try:
        yield
    except PropagationCancelled:
        raise
    except Exception:
        store = ShotStore(folder)
        if not has_made():
            withdraw()
            if is_new and not store.has_results and store.lock.held_by_another() is None:
                shutil.rmtree(folder, ignore_errors=True)
                for path in sorted(absent, key=lambda path: len(path.parts), reverse=True):
                    with suppress(OSError):  # it was not made, or holds something by now
                        path.rmdir()
        raise
