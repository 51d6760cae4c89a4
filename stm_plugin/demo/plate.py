"""A plate with a known true matte, built from photographs.

The photographs come with scikit-image and are free of rights: `coffee` (CC0, Rachel Michetti), `rocket`
(public domain, SpaceX) and `brick` (CC0). A cup on its saucer is cut out along a traced contour; it moves,
turns and bends slightly in front of a panning background, and a pillar passes in front of it. Everything is
composited in linear light through an open shutter, so the true matte is known for every frame, motion blur
and occlusion included.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import OpenImageIO as oiio

from stm_plugin.errors import PlateError

Array = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float64]

PLATE_SPACE = "ACEScg"
REC709_TO_ACESCG: Matrix = np.array(
    [
        [0.6130974, 0.3395231, 0.0473795],
        [0.0701937, 0.9163539, 0.0134524],
        [0.0206156, 0.1095698, 0.8698147],
    ]
)
ACESCG_CHROMATICITIES = (0.713, 0.293, 0.165, 0.830, 0.128, 0.044, 0.32168, 0.33767)
CREDITS = "Photographs from scikit-image: coffee CC0 Rachel Michetti, rocket public domain SpaceX, brick CC0"

# Saucer, cup and spoon in the photograph `coffee`, clockwise from the top of the cup: x, y in pixels.
CUP_CONTOUR = (
    (290.8, 18.0), (310.3, 19.6), (329.9, 24.3), (349.8, 32.1), (369.0, 42.2), (384.7, 54.8), (395.6, 67.3),
    (397.2, 71.6), (404.2, 67.3), (414.0, 67.3), (421.8, 71.2), (424.2, 77.1), (421.8, 86.1), (417.9, 103.7),
    (427.7, 111.5), (443.3, 127.1), (455.1, 144.7), (464.8, 164.3), (472.7, 185.8), (477.4, 207.3),
    (479.3, 228.8), (478.5, 246.4), (474.6, 266.0), (466.8, 285.5), (455.1, 307.1), (439.4, 326.6),
    (423.8, 341.5), (404.2, 356.7), (380.7, 369.6), (357.3, 378.6), (333.8, 385.3), (310.3, 389.2),
    (286.9, 390.4), (263.4, 389.6), (239.9, 386.1), (216.5, 380.2), (193.0, 370.8), (169.5, 357.9),
    (150.0, 344.2), (130.4, 326.6), (114.8, 311.0), (101.1, 293.4), (91.3, 275.8), (83.5, 254.3),
    (78.8, 234.7), (76.4, 213.2), (76.8, 195.6), (79.6, 179.9), (83.5, 166.2), (91.3, 148.6), (99.9, 134.9),
    (110.9, 121.3), (124.5, 107.6), (138.2, 95.1), (153.9, 84.1), (169.5, 75.1), (179.3, 70.4), (184.4, 64.5),
    (194.9, 53.6), (206.7, 43.8), (220.4, 34.4), (236.0, 26.6), (255.6, 20.7), (273.2, 18.4),
)  # fmt: skip
CUP_CENTRE = (280.0, 205.0)
CONTOUR_INSET = 1.5  # pixels of the photograph, by which the contour is shrunk: excludes the table
CONTOUR_SOFTNESS = 0.8  # pixels of the photograph, standard deviation of the edge
CONTOUR_SUPERSAMPLING = 4

HIGHLIGHT_START = 0.75  # linear value of the photograph above which its clipped lights are expanded
HIGHLIGHT_GAIN = 5.0
CUP_EXPOSURE = 1.15
BACKGROUND_EXPOSURE = 2.2  # the launch pad was photographed at dusk
BACKGROUND_DEFOCUS = 1.6  # pixels, standard deviation
PILLAR_TINT = (0.75, 0.56, 0.44)
PILLAR_BRICKS = (180, 512)  # columns and rows of the photograph on the pillar
PILLAR_WIDTH = 0.11  # of the display window's width
GRAIN_SHADOWS = 0.004
GRAIN_SIGNAL = 0.012  # standard deviation at a linear value of 1; grows with its root
SHUTTER = 0.5  # of a frame: 180 degrees


@dataclass(frozen=True)
class PlateSettings:
    """The settings of the demo plate. Sizes in pixels."""

    first_frame: int = 1001
    frame_count: int = 30
    width: int = 960
    height: int = 540
    overscan_x: int = 32
    overscan_y: int = 18
    fps: int = 24
    shutter_samples: int = 12
    seed: int = 2019

    @property
    def frames(self) -> range:
        """The host's frame numbers."""
        return range(self.first_frame, self.first_frame + self.frame_count)


@dataclass(frozen=True)
class DemoPlate:
    """The files of a built plate: patterns with ####, and the true matte of the first frame as a key."""

    plate: str
    truth: str
    key: Path
    settings: PlateSettings

    @property
    def frames(self) -> range:
        """The host's frame numbers."""
        return self.settings.frames


def build_plate(folder: Path, settings: PlateSettings | None = None) -> DemoPlate:
    """Render the plate and its true mattes as EXR sequences.

    Args:
        folder: gets `plate/`, `truth/` and `keys/`; existing files of the same names are replaced.
        settings: size, range and quality.

    Returns:
        The files.

    Raises:
        PlateError: a photograph is missing or a file cannot be written.
    """
    settings = settings or PlateSettings()
    built = DemoPlate(
        plate=str(folder / "plate" / "plate.####.exr"),
        truth=str(folder / "truth" / "truth.####.exr"),
        key=folder / "keys" / f"cup.{settings.first_frame}.exr",
        settings=settings,
    )
    try:
        for name in ("plate", "truth", "keys"):
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PlateError(
            f"The folder cannot be made: {error.strerror}.", path=folder, hint="Choose another one."
        ) from error
    scene = Scene(settings)
    for index, frame in enumerate(settings.frames):
        picture, alpha = scene.frame(index)
        write_exr(frame_path(built.plate, frame), picture, ("R", "G", "B"), settings, frame)
        write_exr(frame_path(built.truth, frame), alpha[..., None], ("A",), settings, frame)
        if frame == settings.first_frame:
            write_exr(built.key, alpha[..., None], ("A",), settings, frame)
    return built


def frame_path(pattern: str, frame: int) -> Path:
    """The file of one frame of a pattern with ####."""
    return Path(pattern.replace("####", f"{frame:04d}"))


class Scene:
    """The layers and their poses over time. Times count frames from the first one, with fractions."""

    def __init__(self, settings: PlateSettings) -> None:
        self.settings = settings
        self.size = (settings.width + 2 * settings.overscan_x, settings.height + 2 * settings.overscan_y)
        self.cup = cup_layer()
        self.background = background_picture()
        self.pillar = pillar_layer(settings)

    def frame(self, index: int) -> tuple[Array, Array]:
        """One frame through an open shutter.

        Returns:
            Over the data window: the picture (h, w, 3) in ACEScg with grain, the true matte (h, w) in [0, 1].
        """
        samples = self.settings.shutter_samples
        offsets = (np.arange(samples) + 0.5) / samples - 0.5
        width, height = self.size
        picture: Array = np.zeros((height, width, 3), np.float32)
        matte: Array = np.zeros((height, width), np.float32)
        for offset in offsets:
            instant, alpha = self.instant(index + SHUTTER * float(offset))
            picture += instant / samples
            matte += alpha / samples
        wide = (picture @ REC709_TO_ACESCG.T.astype(np.float32)).astype(np.float32)
        rng = np.random.default_rng((self.settings.seed, index))
        return add_grain(wide, rng), np.clip(matte, 0.0, 1.0)

    def instant(self, time: float) -> tuple[Array, Array]:
        """The composite at one instant: picture (h, w, 3), linear Rec.709; the cup's visible matte (h, w)."""
        picture = self.warp(self.background, self.background_pose(time), cv2.BORDER_REFLECT_101)
        cup = self.warp(self.cup, self.cup_pose(time))
        pillar = self.warp(self.pillar, self.pillar_pose(time))
        return over(over(picture, cup), pillar), cup[..., 3] * (1.0 - pillar[..., 3])

    def warp(self, picture: Array, pose: Matrix, border: int = cv2.BORDER_CONSTANT) -> Array:
        """Place a layer's picture over the data window. `pose` goes from layer pixels to display pixels."""
        to_window = translation(self.settings.overscan_x, self.settings.overscan_y) @ pose
        placed = cv2.warpPerspective(picture, to_window, self.size, flags=cv2.INTER_LINEAR, borderMode=border)
        return np.asarray(placed, np.float32)

    def progress(self, time: float) -> float:
        """0 on the first frame, 1 on the last."""
        return time / max(1, self.settings.frame_count - 1)

    def cup_pose(self, time: float) -> Matrix:
        """The cup's pose: from left to right on an arc, turning, coming nearer and tilting."""
        along = self.progress(time)
        width, height = self.settings.width, self.settings.height
        x = width * (0.27 + 0.44 * along + 0.02 * math.sin(2 * math.pi * 1.5 * along))
        y = height * (0.56 - 0.14 * math.sin(math.pi * along) + 0.03 * math.sin(2 * math.pi * 2 * along))
        turn = math.radians(-14 + 30 * along + 5 * math.sin(2 * math.pi * along))
        scale = height / 540 * (0.68 + 0.20 * along)
        bend = np.eye(3)
        bend[0, 1] = 0.10 * math.sin(2 * math.pi * along)
        bend[1, 1] = 0.94 + 0.06 * math.cos(2 * math.pi * along)
        bend[2, 0] = 0.00035 * math.sin(2 * math.pi * along)
        bend[2, 1] = 0.00030 * math.sin(2 * math.pi * 1.3 * along)
        return (
            translation(x, y)
            @ rotation(turn)
            @ np.diag([scale, scale, 1.0])
            @ bend
            @ translation(-CUP_CENTRE[0], -CUP_CENTRE[1])
        )

    def background_pose(self, time: float) -> Matrix:
        """The background's pose: a pan against the cup's direction with a slow zoom in."""
        along = self.progress(time)
        rows, columns = self.background.shape[:2]
        scale = self.settings.width / columns * (1.22 + 0.10 * along)
        x = self.settings.width * (0.55 - 0.10 * along)
        y = self.settings.height * (0.42 + 0.03 * along)
        return translation(x, y) @ np.diag([scale, scale, 1.0]) @ translation(-columns / 2, -rows / 2)

    def pillar_pose(self, time: float) -> Matrix:
        """The pillar's pose: across the picture from right to left in the middle of the shot."""
        along = (self.progress(time) - 0.18) / 0.64
        rows, columns = self.pillar.shape[:2]
        x = self.settings.width * (1.12 - 1.24 * along)
        y = self.settings.height / 2
        return translation(x, y) @ rotation(math.radians(4)) @ translation(-columns / 2, -rows / 2)


# --- layers -------------------------------------------------------------------------------------------------


def photograph(name: str) -> Array:
    """One of scikit-image's photographs (h, w, 3) in linear Rec.709, its clipped lights expanded above 1.

    Raises:
        PlateError: scikit-image is not installed.
    """
    try:
        from skimage import data
    except ImportError as error:
        raise PlateError(
            "The demo's photographs are missing: scikit-image is not installed.",
            hint="`python3 install.py --demo` installs it.",
        ) from error
    pixels: Array = np.asarray(getattr(data, name)(), np.float32) / 255.0
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    linear = np.where(pixels <= 0.04045, pixels / 12.92, ((pixels + 0.055) / 1.055) ** 2.4).astype(np.float32)
    dimmest = linear.min(axis=2, keepdims=True)
    above = np.clip((dimmest - HIGHLIGHT_START) / (1.0 - HIGHLIGHT_START), 0.0, 1.0)
    return np.asarray(linear * (1.0 + HIGHLIGHT_GAIN * above**2), np.float32)


def cup_layer() -> Array:
    """The cup, cut out: a soft true matte, and colours extended beyond it, so that no table is visible."""
    picture = photograph("coffee") * np.float32(CUP_EXPOSURE)
    rows, columns = picture.shape[:2]
    fine = np.zeros((rows * CONTOUR_SUPERSAMPLING, columns * CONTOUR_SUPERSAMPLING), np.uint8)
    corners = np.round((np.array(CUP_CONTOUR) + 0.5) * CONTOUR_SUPERSAMPLING - 0.5).astype(np.int32)
    cv2.fillPoly(fine, [corners], (255,))
    inside = cv2.distanceTransform(fine, cv2.DIST_L2, 5) / CONTOUR_SUPERSAMPLING
    cut = (np.asarray(inside) > CONTOUR_INSET).astype(np.float32)
    solid = cv2.resize(cut, (columns, rows), interpolation=cv2.INTER_AREA)
    alpha = np.asarray(cv2.GaussianBlur(solid, (0, 0), CONTOUR_SOFTNESS), np.float32)
    return layer(extend_colours(picture, solid >= 1.0), alpha)


def extend_colours(picture: Array, inside: npt.NDArray[np.bool_]) -> Array:
    """Fill pixels outside a region with the colour of the region's nearest pixel."""
    outside = (~inside).astype(np.uint8)
    _, labels = cv2.distanceTransformWithLabels(outside, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    colours = np.zeros((int(labels.max()) + 1, 3), np.float32)
    colours[labels[inside]] = picture[inside]
    return np.asarray(colours[labels], np.float32)


def background_picture() -> Array:
    """The launch pad at dusk, slightly out of focus."""
    picture = photograph("rocket") * np.float32(BACKGROUND_EXPOSURE)
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), BACKGROUND_DEFOCUS), np.float32)


def pillar_layer(settings: PlateSettings) -> Array:
    """A brick pillar, higher than the picture, shaded like a cylinder."""
    bricks = photograph("brick")
    width = max(8, round(settings.width * PILLAR_WIDTH))
    height = 2 * settings.height
    piece = bricks[:, : PILLAR_BRICKS[0]]
    tile_height = round(width * PILLAR_BRICKS[1] / PILLAR_BRICKS[0])
    tile = cv2.resize(piece[: PILLAR_BRICKS[1]], (width, tile_height), interpolation=cv2.INTER_AREA)
    wall = np.tile(tile, (math.ceil(height / tile.shape[0]), 1, 1))[:height]
    across = np.linspace(-1.0, 1.0, width, dtype=np.float32)
    shade = (0.35 + 0.65 * np.sqrt(np.clip(1.0 - across**2, 0.0, 1.0)))[None, :, None]
    colour = np.asarray(wall * shade * np.array(PILLAR_TINT, np.float32), np.float32)
    margin = 4  # empty columns, so that the edge is smooth wherever it is placed
    colour = np.pad(colour, ((0, 0), (margin, margin), (0, 0)), mode="edge")
    alpha: Array = np.zeros(colour.shape[:2], np.float32)
    alpha[:, margin:-margin] = 1.0
    return layer(colour, np.asarray(cv2.GaussianBlur(alpha, (0, 0), 0.8), np.float32))


def layer(colour: Array, alpha: Array) -> Array:
    """A picture (h, w, 3) and its matte (h, w) as one premultiplied layer (h, w, 4)."""
    return np.dstack([colour * alpha[..., None], alpha]).astype(np.float32)


def over(below: Array, above: Array) -> Array:
    """Composite a premultiplied layer (h, w, 4) over a picture (h, w, 3) in linear light."""
    return np.asarray(above[..., :3] + below * (1.0 - above[..., 3:]), np.float32)


def add_grain(picture: Array, rng: np.random.Generator) -> Array:
    """Film-like grain: soft over about a pixel, stronger where there is more light."""
    noise = cv2.GaussianBlur(rng.standard_normal(picture.shape).astype(np.float32), (0, 0), 0.6)
    strength = GRAIN_SHADOWS + GRAIN_SIGNAL * np.sqrt(np.clip(picture, 0.0, None))
    return np.asarray(picture + noise * strength, np.float32)


def translation(x: float, y: float) -> Matrix:
    """Move by x, y."""
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def rotation(angle: float) -> Matrix:
    """Turn by an angle in radians, clockwise on a screen with y down."""
    cosine, sine = math.cos(angle), math.sin(angle)
    return np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])


# --- files --------------------------------------------------------------------------------------------------


def write_exr(
    path: Path, pixels: Array, channels: tuple[str, ...], settings: PlateSettings, frame: int
) -> None:
    """Write one half-float EXR with overscan, timecode and colour space.

    Args:
        path: the file.
        pixels: float32 (h, w, c) over the data window.
        channels: c names.
        settings: the windows and the rate.
        frame: the host's frame number, which is also the timecode.

    Raises:
        PlateError: it cannot be written.
    """
    rows, columns, count = pixels.shape
    spec = oiio.ImageSpec(columns, rows, count, "half")
    spec.channelnames = channels
    spec.x, spec.y = -settings.overscan_x, -settings.overscan_y
    spec.full_x, spec.full_y = 0, 0
    spec.full_width, spec.full_height = settings.width, settings.height
    spec.attribute("compression", "zip")
    spec.attribute("PixelAspectRatio", 1.0)
    spec.attribute("framesPerSecond", oiio.TypeDesc("rational2i"), (settings.fps, 1))
    spec.attribute("smpte:TimeCode", oiio.TypeDesc("timecode"), timecode(frame, settings.fps))
    spec.attribute("Copyright", CREDITS)
    if channels != ("A",):
        spec.attribute("oiio:ColorSpace", PLATE_SPACE)
        spec.attribute("chromaticities", oiio.TypeDesc("float[8]"), ACESCG_CHROMATICITIES)
    output = oiio.ImageOutput.create(str(path))
    if output is None:
        raise PlateError(f"The file cannot be written: {oiio.geterror()}.", frame=frame, path=path)
    written = output.open(str(path), spec) and output.write_image(np.ascontiguousarray(pixels))
    if not written or not output.close():
        raise PlateError(f"The file cannot be written: {output.geterror()}.", frame=frame, path=path)


def timecode(frame: int, fps: int) -> tuple[int, int]:
    """SMPTE timecode of a frame counted from 00:00:00:00 as EXR stores it: packed digits, user bits."""
    seconds, frames = divmod(frame, fps)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    packed = 0
    for place, number in enumerate((frames, seconds, minutes, hours)):
        packed |= ((number // 10) << 4 | number % 10) << (8 * place)
    return packed, 0
