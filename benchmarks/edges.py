"""How good the edges of a matte are, against exactly known alpha: every way of finishing beside each other.

    python benchmarks/edges.py ../shared/data/soft
    python benchmarks/edges.py ../shared/data/soft --clips furball_C --methods off guided "true cut" --times
    python benchmarks/edges.py ../shared/data/soft --clips furball_B --methods learned --keys
    python benchmarks/edges.py ../shared/data/soft --split

A folder holds clips as `NAME/plate/*` with `NAME/alpha/*` (for `furball_A`, `_B` and `_C`: `furball/alpha`).
The network gets one key, the true alpha of the first frame cut at a half, and propagates it; that frame is
not scored. All ways of finishing get the same probabilities.

Measured inside the band, the pixels within 10 of one whose true alpha is neither 0 nor 1 (SAD: everywhere):

- MSE x 1000: mean squared error;
- Grad: sum of (|grad p| - |grad g|)^2 / 1000, gradients by first derivatives of a Gaussian of 1.4 pixels of
  norm 1;
- dtSSD x 100: root of the mean square of the error's change from frame to frame;
- SAD: sum of |p - g| / 1000;
- soft: pixels with 0.02 < p < 0.98 over those of the truth.

`--split` prints instead where the error of learned edges comes from, as parts of its MSE:

- lost: where the network's mask, cut at a half, is wrong over a square of 8 plate pixels or more;
- enlarging: the error of the true alpha that is reduced to the working size and enlarged as the product does;
- rest: the error of alpha at working size, along the edge.

`--keys` prints instead how much of a key's softness is carried on: the soft pixels of a hard key, of a
blurred one and of the true alpha as key, and of the frames after it.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from stm_plugin.finishing.band import Guide
from stm_plugin.finishing.guided import finish
from stm_plugin.finishing.learned import EdgeEvidence, enlarged_along_plate, finish_learned
from stm_plugin.images.working_picture import WorkingGeometry, to_plate, to_working
from stm_plugin.planning.values import Request
from stm_plugin.propagation.edge_evidence import EdgeEvidenceSource
from stm_plugin.propagation.networks import ready_refiner
from stm_plugin.settings import FinishSettings, Precision, Settings
from stm_plugin.shot.shot import Shot
from stm_plugin.store.description import PlateDescription
from stm_plugin.windows import FloatArray

BAND = 10
GRADIENT_SIGMA = 1.4
KEY_BLUR = 3.0
LOST = 8
"""Plate pixels: a mistake of the network that holds a square of this side is a lost part."""
AFTER_A_KEY = 4
"""How many frames after a key its softness is looked for."""
OWN_TRIMAP = 0.05
"""Of the short side: how wide the trimap around the unsure pixels of a matte is for closed-form matting."""

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Shown:
    """What a way of finishing gets of one frame.

    Attributes:
        evidence: its probability at working size, and what stands beside it.
        guide: the frame's colours.
        display: (H, W, 3) sRGB.
        truth: (H, W), for the ways that are told more than the product is.
        weights: of the edge refiner.
    """

    evidence: EdgeEvidence
    guide: Guide
    geometry: WorkingGeometry
    display: FloatArray
    truth: FloatArray
    weights: str


Way = Callable[[Shown], FloatArray]


def off(shown: Shown) -> FloatArray:
    """The plain enlargement."""
    return finish(shown.evidence.probability, shown.guide, shown.geometry, FinishSettings(edges="off"))


def guided(shown: Shown) -> FloatArray:
    """The guided filter as it is set by default."""
    return finish(shown.evidence.probability, shown.guide, shown.geometry, FinishSettings(edges="guided"))


def by_refiner(shown: Shown, precision: Precision = "float32") -> FloatArray:
    """The edge refiner."""
    settings = FinishSettings(edges="learned", edge_weights=shown.weights)
    refiner = ready_refiner(settings.edge_weights, "cpu", precision)
    return finish_learned(shown.evidence, shown.guide, shown.geometry, settings, refiner)


def by_refiner_in_bfloat16(shown: Shown) -> FloatArray:
    """The edge refiner in a shot of that precision."""
    return by_refiner(shown, "bfloat16")


def refiner_on_true_mask(shown: Shown) -> FloatArray:
    """The refiner with the true alpha cut at a half, at working size, in place of the network's probability.
    What `learned` loses against it is the network's."""
    cut = (shown.truth > 0.5).astype(np.float32)
    mask = to_working(cut, shown.guide.window, shown.geometry)
    evidence = replace(shown.evidence, probability=mask, before=mask, after=mask, carried=())
    return by_refiner(replace(shown, evidence=evidence))


def refiner_with_true_trimap(shown: Shown) -> FloatArray:
    """The same with the true trimap: what it gives is taken where the truth is neither 0 nor 1."""
    return np.where((shown.truth > 0) & (shown.truth < 1), refiner_on_true_mask(shown), shown.truth)


def guided_before(shown: Shown) -> FloatArray:
    """The guided filter as it was set before: a small window and a steep edge."""
    settings = FinishSettings(edges="guided", radius=2, sharpness=2.0)
    return finish(shown.evidence.probability, shown.guide, shown.geometry, settings)


def closed_form(shown: Shown) -> FloatArray:
    """PyMatting's closed-form matting, with a trimap around the contour of the probability."""
    inside = to_plate(shown.evidence.probability, shown.guide.window, shown.geometry) > 0.5
    reach = max(1, round(OWN_TRIMAP * min(inside.shape)))
    return _closed_form(shown.display, inside, inside, reach)


def closed_form_true_trimap(shown: Shown) -> FloatArray:
    """The same with the trimap that the truth gives: unknown is what is neither 0 nor 1."""
    return _closed_form(shown.display, shown.truth >= 1, shown.truth > 0, 0)


def true_cut(shown: Shown) -> FloatArray:
    """The true alpha cut at a half: a perfect binary mask."""
    return (shown.truth > 0.5).astype(np.float32)


WAYS: dict[str, Way] = {
    "off": off,
    "guided": guided,
    "guided before": guided_before,
    "learned": by_refiner,
    "learned, bf16": by_refiner_in_bfloat16,
    "learned, true mask": refiner_on_true_mask,
    "learned, true trimap": refiner_with_true_trimap,
    "closed form": closed_form,
    "closed form, true trimap": closed_form_true_trimap,
    "true cut": true_cut,
}


def _closed_form(display: FloatArray, inside: BoolArray, maybe: BoolArray, reach: int) -> FloatArray:
    from pymatting import estimate_alpha_cf  # slow to import

    kernel = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    trimap = np.full(inside.shape, 0.5)
    trimap[cv2.erode(inside.astype(np.uint8), kernel) > 0] = 1
    trimap[cv2.dilate(maybe.astype(np.uint8), kernel) == 0] = 0
    if not (trimap == 1).any() or not (trimap == 0).any():
        return inside.astype(np.float32)
    with warnings.catch_warnings(), contextlib.redirect_stdout(None):  # PyMatting prints its warnings
        warnings.simplefilter("ignore")
        return np.asarray(estimate_alpha_cf(display.astype(np.float64), trimap), np.float32)


# ---- clips -----------------------------------------------------------------------------------


def clips_of(folder: Path) -> dict[str, tuple[Path, Path]]:
    """The clips of a folder: plate and alpha by name."""
    found = {}
    for plate in sorted(folder.glob("*/plate")):
        alpha = plate.parent / "alpha"
        if not alpha.is_dir():
            alpha = folder / plate.parent.name.rpartition("_")[0] / "alpha"
        if alpha.is_dir():
            found[plate.parent.name] = (plate, alpha)
    if not found:
        raise SystemExit(f"{folder}: no clips (NAME/plate and NAME/alpha)")
    return found


def hard(truth: FloatArray) -> FloatArray:
    """The key of all tables: the truth cut at a half."""
    return (truth > 0.5).astype(np.float32)


def blurred(truth: FloatArray) -> FloatArray:
    """A hard key with a feather of 3 pixels."""
    return np.asarray(cv2.GaussianBlur(hard(truth), (0, 0), KEY_BLUR), np.float32)


KEYS: dict[str, Callable[[FloatArray], FloatArray]] = {
    "hard": hard,
    "blurred": blurred,
    "true alpha": lambda truth: truth,
}


def shown_frames(
    plate: Path,
    alpha: Path,
    key_of: Callable[[FloatArray], FloatArray] = hard,
    settings: Settings | None = None,
) -> Iterator[Shown]:
    """All frames of a clip but the first, propagated from it.

    Args:
        key_of: makes the key from the true alpha.
        settings: of the shot; the defaults if None.
    """
    truths = [cv2.imread(str(one), cv2.IMREAD_GRAYSCALE) / np.float32(255) for one in sorted(alpha.iterdir())]
    yield from shown_of(plate, truths, key_of, settings=settings)


def shown_of(
    plate: Path,
    truths: list[FloatArray],
    key_of: Callable[[FloatArray], FloatArray] = hard,
    place: int = 0,
    settings: Settings | None = None,
) -> Iterator[Shown]:
    """All frames of a plate but the key, propagated from it.

    Args:
        truths: of all frames.
        key_of: makes the key from the truth.
        place: of the key in the plate, from 0.
        settings: of the shot; the defaults if None.
    """
    with tempfile.TemporaryDirectory() as folder:
        description = PlateDescription("files", str(plate))
        shot = Shot.create(Path(folder) / "clip", description, settings or Settings())
        others = list(shot.plate.frames)
        key = others.pop(place)
        shot.add_key(key, {"object": key_of(truths[place])})
        shot.propagate()
        yield from _shown(shot, others, truths[:place] + truths[place + 1 :])
        shot.close()


def _shown(shot: Shot, others: list[int], truths: list[FloatArray]) -> Iterator[Shown]:
    propagation = shot._working
    results = propagation.finisher(shot.plan(Request())).results
    source = EdgeEvidenceSource(results, lambda frame: propagation.frames.load(frame).guide())
    for frame, truth in zip(others, truths, strict=True):
        result = results.frame_result(frame)
        (name,) = result.probabilities
        loaded = propagation.frames.load(frame)
        guide = Guide(loaded.guide(), loaded.display_at, loaded.plate_frame.data_window)
        weights = propagation.settings.finish.edge_weights
        yield Shown(source.of(result, name), guide, propagation.geometry, loaded.display(), truth, weights)


# ---- measures --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scores:
    """Means over the frames of a clip; the units are those of the module's docstring."""

    mse: float
    grad: float
    change: float
    sad: float
    soft: float

    def __str__(self) -> str:
        return f"{self.mse:6.1f} {self.grad:7.2f} {self.change:6.1f} {self.sad:7.2f} {self.soft:6.2f}"


def scores(mattes: list[FloatArray], truths: list[FloatArray]) -> Scores:
    """Of the mattes of neighbouring frames."""
    bands = [band_of(one) for one in truths]
    pairs = list(zip(mattes, truths, bands, strict=True))
    changes = [
        float(np.square((p1 - p0) - (g1 - g0))[band1].mean())
        for (p0, g0, _), (p1, g1, band1) in itertools.pairwise(pairs)
    ]
    return Scores(
        mse=statistics.mean(float(np.square(p - g)[band].mean()) * 1000 for p, g, band in pairs),
        grad=statistics.mean(
            float(np.square(slope_of(p) - slope_of(g))[band].sum()) / 1000 for p, g, band in pairs
        ),
        change=statistics.mean(100 * float(np.sqrt(one)) for one in changes) if changes else float("nan"),
        sad=statistics.mean(float(np.abs(p - g).sum()) / 1000 for p, g, _ in pairs),
        soft=sum(soft_pixels(p) for p, _, _ in pairs) / max(1, sum(soft_pixels(g) for _, g, _ in pairs)),
    )


def band_of(truth: FloatArray) -> BoolArray:
    """(H, W): within BAND pixels of one that is neither 0 nor 1."""
    soft = ((truth > 0) & (truth < 1)).astype(np.uint8)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * BAND + 1, 2 * BAND + 1))
    return np.asarray(cv2.dilate(soft, disc)) > 0


def slope_of(values: FloatArray) -> FloatArray:
    """(H, W): length of the gradient, by first derivatives of a Gaussian."""
    reach = int(np.ceil(4 * GRADIENT_SIGMA))
    x = np.arange(-reach, reach + 1, dtype=np.float64)
    smooth = np.exp(-(x**2) / (2 * GRADIENT_SIGMA**2))
    slope = x * smooth
    slope /= np.sqrt(
        np.square(slope).sum() * np.square(smooth).sum()
    )  # the kernel as a whole has a norm of 1
    across = cv2.sepFilter2D(values, cv2.CV_32F, slope, smooth, borderType=cv2.BORDER_REPLICATE)
    down = cv2.sepFilter2D(values, cv2.CV_32F, smooth, slope, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(np.hypot(across, down), np.float32)


def soft_pixels(values: FloatArray) -> int:
    return int(np.count_nonzero((values > 0.02) & (values < 0.98)))


def split_of(shown: Shown) -> tuple[float, float, float]:
    """MSE x 1000 of learned edges in the band: lost by the network, lost by enlarging, and the rest."""
    truth, window, geometry = shown.truth, shown.guide.window, shown.geometry
    band = band_of(truth)
    errors = 1000 * np.square(by_refiner(shown) - truth)
    wrong = (to_plate(shown.evidence.probability, window, geometry) > 0.5) != (truth > 0.5)
    lost = cv2.morphologyEx(wrong.astype(np.uint8), cv2.MORPH_OPEN, np.ones((LOST, LOST), np.uint8)) > 0
    best = enlarged_along_plate(to_working(truth, window, geometry), shown.guide, geometry, FinishSettings())
    enlarging = float(1000 * np.square(best - truth)[band].mean())
    by_network = float(errors[band & lost].sum() / max(1, np.count_nonzero(band)))
    return by_network, enlarging, float(errors[band].mean()) - by_network - enlarging


def print_split(name: str, shown: list[Shown]) -> None:
    """The parts of the error of learned edges."""
    lost, enlarging, rest = (statistics.mean(each) for each in zip(*map(split_of, shown), strict=True))
    total = lost + enlarging + rest
    print(
        f"{name:14} MSE {total:6.1f}: lost {lost:5.1f}, enlarging {enlarging:5.1f}, rest {rest:5.1f}",
        flush=True,
    )


def print_carried_softness(name: str, clip: tuple[Path, Path], ways: list[str], settings: Settings) -> None:
    """The soft pixels of a key and of the frames after it, for each kind of key."""
    for kind, key_of in KEYS.items():
        shown = list(itertools.islice(shown_frames(*clip, key_of, settings), AFTER_A_KEY))
        first = cv2.imread(str(min(clip[1].iterdir())), cv2.IMREAD_GRAYSCALE) / np.float32(255)
        counts = {"truth": [soft_pixels(first), *(soft_pixels(one.truth) for one in shown)]}
        for way in ways:
            mattes = [WAYS[way](one) for one in shown]
            counts[way] = [soft_pixels(key_of(first)), *map(soft_pixels, mattes)]
            measured = scores(mattes, [one.truth for one in shown])
            print(f"{name:14} {kind:12} {way:26} {measured}")
        for way, found in counts.items():
            print(f"{name:14} {kind:12} {way:26} " + " ".join(f"{one:7d}" for one in found), flush=True)


# ---- times -----------------------------------------------------------------------------------


def enlarged(shown: Shown, width: int = 2048) -> Shown:
    """The same frame as a 2K plate."""
    window = shown.guide.window
    height = round(width * window.height / window.width)
    display = np.asarray(
        cv2.resize(shown.display, (width, height), interpolation=cv2.INTER_CUBIC), np.float32
    )
    display = np.clip(display, 0, 1)
    big = replace(window, x=0, y=0, width=width, height=height)
    guide = Guide(shown.guide.working, lambda rows, columns: display[rows, columns], big)
    geometry = replace(shown.geometry, canvas=big, region=big)
    truth = np.asarray(cv2.resize(shown.truth, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)
    return replace(shown, guide=guide, geometry=geometry, display=display, truth=truth)


def milliseconds(way: Way, shown: Shown, rounds: int = 5) -> float:
    """The least time of some rounds."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        way(shown)
        times.append(1000 * (time.perf_counter() - started))
        if times[-1] > 2000:
            break
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", nargs="*", help="names; all by default")
    parser.add_argument("--methods", nargs="*", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--frames", type=int, help="score the first N frames only")
    parser.add_argument("--times", action="store_true", help="and the time of a 2K frame of each clip")
    parser.add_argument("--split", action="store_true", help="where the error of learned edges comes from")
    parser.add_argument("--keys", action="store_true", help="how much of a key's softness is carried on")
    parser.add_argument("--working-size", type=int, help="short side that the network sees")
    parser.add_argument("--edge-weights", default=FinishSettings().edge_weights, help="a name or a file")
    options = parser.parse_args()
    clips = clips_of(options.folder)
    settings = Settings(finish=FinishSettings(edge_weights=options.edge_weights))
    if options.working_size:
        settings = replace(settings, working_size=options.working_size)
    if options.keys:
        for name in options.clips or clips:
            print_carried_softness(name, clips[name], options.methods, settings)
        return
    if options.split:
        for name in options.clips or clips:
            print_split(name, list(shown_frames(*clips[name], settings=settings))[: options.frames])
        return
    print(f"{'clip':14} {'way':26} {'MSE':>6} {'Grad':>7} {'dtSSD':>6} {'SAD':>7} {'soft':>6}   2K ms soft %")
    for name in options.clips or clips:
        frames = list(shown_frames(*clips[name], settings=settings))[: options.frames]
        truths = [one.truth for one in frames]
        for way in options.methods:
            measured = scores([WAYS[way](one) for one in frames], truths)
            spent = ""
            if options.times:
                big = enlarged(frames[0])
                share = 100 * soft_pixels(WAYS[way](big)) / big.truth.size
                spent = f"{milliseconds(WAYS[way], big):7.0f} {share:6.1f}"
            print(f"{name:14} {way:26} {measured} {spent}", flush=True)


if __name__ == "__main__":
    main()
