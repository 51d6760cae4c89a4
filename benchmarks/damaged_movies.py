#!/usr/bin/env python3
"""How much damage in movies is found: bits are flipped in copies, and each copy is opened as a plate is.

    python benchmarks/damaged_movies.py FOLDER [--bits 3] [--copies 12]

FOLDER holds movies that are whole, one for each codec of interest. The bits lie between a tenth and nine
tenths of the file; the same seeds flip the same bits.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stm_plugin.errors import PlateError
from stm_plugin.images.movie import index_movie, is_movie


def is_found(movie: Path, bits: int, seed: int, folder: Path) -> bool:
    """Whether a copy with this many flipped bits is refused."""
    data, chance = bytearray(movie.read_bytes()), random.Random(seed)
    for place in chance.sample(range(len(data) // 10, len(data) * 9 // 10), bits):
        data[place] ^= 1 << chance.randrange(8)
    copy = folder / f"{seed}{movie.suffix}"
    copy.write_bytes(data)
    try:
        index_movie(copy)
    except PlateError:
        return True
    finally:
        copy.unlink()
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--copies", type=int, default=12)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for movie in sorted(path for path in asked.folder.iterdir() if is_movie(path)):
            try:
                index_movie(movie)
            except PlateError as error:
                print(f"{movie.name}: refused though it is whole: {error}")
                continue
            found = sum(is_found(movie, asked.bits, seed, Path(folder)) for seed in range(asked.copies))
            print(f"{movie.name}: {found} of {asked.copies} found", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
