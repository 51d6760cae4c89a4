"""How long scrubbing in `stm review` waits: the small pictures (proxies) of a 2K plate, made ahead.

    python benchmarks/review.py                  # 100 frames, 2048x1080, JPEG
    python benchmarks/review.py --kind exr       # half float, zip, ACEScg
    python benchmarks/review.py --at 50          # the frame that is looked at
    python benchmarks/review.py --clip FOLDER    # frames of a clip (pictures of 8 bits), enlarged

The plate is made up, unless a clip is given: a soft picture that moves, with grain. Nothing is requested
while the proxies are made ahead, but for the single requests that are timed first: a cold one (no cache),
then the same one again. Meanwhile the engine starts, as it does for the page.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import OpenImageIO as oiio

sys.path.insert(0, str(Path(__file__).parents[1]))

from stm_plugin.review.proxies import PictureCache
from stm_plugin.review.session import ReviewSession
from stm_plugin.settings import Settings
from stm_plugin.shot.shot import Shot
from stm_plugin.store.description import PlateDescription

Picture = npt.NDArray[np.float32]

FIRST = 1001
WIDTH, HEIGHT = 2048, 1080


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--kind", choices=("jpg", "exr"), default="jpg")
    parser.add_argument("--at", type=int, default=0, help="the index of the frame that is looked at")
    parser.add_argument("--single", type=int, default=10, help="single requests that are timed, each cold")
    parser.add_argument("--clip", type=Path, help="a folder of JPEG or PNG files; a short clip is repeated")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        plate = make_plate(Path(folder), given.frames, given.kind, given.clip)
        space = "ACEScg" if given.kind == "exr" else None
        settings = Settings(device="cpu", colour_space=space)
        shot = Shot.create(Path(folder) / "plate.stmshot", PlateDescription("files", plate), settings)
        measure(shot, Path(folder), given)


def measure(shot: Shot, folder: Path, given: argparse.Namespace) -> None:
    frames = shot.plate.frames
    with closing(ReviewSession(shot, PictureCache(folder / "cold"))) as session:
        cold = [request(session, frame) for frame in frames[-given.single :]]
        cached = [request(session, frame) for frame in frames[-given.single :]]
        print(f"one proxy, not cached   {statistics.median(cold) * 1e3:8.1f} ms")
        print(f"one proxy, cached       {statistics.median(cached) * 1e3:8.1f} ms")
    shot = Shot.open(shot.folder)
    cache = PictureCache(folder / "ahead")
    started, clock = time.monotonic(), time.process_time()
    with closing(ReviewSession(shot, cache)) as session:
        session.look_at(frames[given.at])
        while session.proxies_left:
            time.sleep(0.05)
        wall, work = time.monotonic() - started, time.process_time() - clock
        print(f"{len(frames)} proxies made ahead {wall:8.1f} s ({work:.1f} s of processor time)")
        waits = [request(session, frame) for frame in frames]
        print(f"scrubbing after that    {max(waits) * 1e3:8.1f} ms at most a frame")
    size = sum(one.stat().st_size for one in (folder / "ahead").rglob("*.webp"))
    print(f"bytes                   {size / 1e6:8.1f} MB ({size / len(frames) / 1e3:.0f} kB a frame)")


def request(session: ReviewSession, frame: int) -> float:
    """Seconds of one request of a proxy."""
    started = time.monotonic()
    session.plate(frame, "proxy")
    return time.monotonic() - started


def make_plate(folder: Path, count: int, kind: str, clip: Path | None) -> str:
    """Write the frames; returns the sequence."""
    pictures = made_up(count) if clip is None else enlarged(clip, count)
    for index, picture in enumerate(pictures):
        path = str(folder / f"plate.{FIRST + index}.{kind}")
        if kind == "jpg":
            cv2.imwrite(path, np.rint(picture * 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 92])
            continue
        spec = oiio.ImageSpec(WIDTH, HEIGHT, 3, oiio.HALF)
        spec["compression"] = "zip"
        image = oiio.ImageBuf(spec)
        image.set_pixels(oiio.ROI(), np.ascontiguousarray(picture[..., ::-1]))
        if not image.write(path):
            raise RuntimeError(image.geterror())
    return str(folder / f"plate.####.{kind}")


def enlarged(clip: Path, count: int) -> Iterator[Picture]:
    """Frames of a clip at the benchmark's size, (HEIGHT, WIDTH, 3), BGR in [0, 1]; to and fro."""
    files = sorted(one for one in clip.rglob("*") if one.suffix in (".jpg", ".png"))
    if not files:
        raise SystemExit(f"{clip} has no JPEG or PNG files.")
    for index in range(count):
        place = index % (2 * len(files))
        picture = cv2.imread(str(files[min(place, 2 * len(files) - 1 - place)]))
        assert picture is not None
        large = cv2.resize(picture, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        yield large.astype(np.float32) / 255


def made_up(count: int) -> Iterator[Picture]:
    """Frames with structure and grain, different on every frame."""
    random = np.random.default_rng(1)
    coarse = random.random((HEIGHT // 16, WIDTH // 16 + count, 3), np.float32)
    grain = random.normal(0, 0.02, (HEIGHT, WIDTH, 3)).astype(np.float32)
    for index in range(count):
        part = np.ascontiguousarray(coarse[:, index : index + WIDTH // 16])
        picture = cv2.resize(part, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        yield np.clip(picture + np.roll(grain, 37 * index, 1), 0, 1)


if __name__ == "__main__":
    main()
