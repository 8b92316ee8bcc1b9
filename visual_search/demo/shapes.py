"""What the demo shop sells, as outlines: one list of painted parts for each category.

A part is a kind of paint and a path, in the notation of SVG's `d` attribute (absolute `M`, `L`, `C`
and `Z`, and `E cx cy rx ry` for an ellipse) on a grid of 100 × 100, y downwards. A path in
`Half` is its right half, from top centre to bottom centre; the left half mirrors it.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

Point = tuple[float, float]
Paint = Literal["fabric", "trim", "deep", "light", "dark", "wood", "metal", "glow", "seam"]

_CENTRE_X: Final = 50.0
_CURVE_STEPS: Final = 14
_ELLIPSE_STEPS: Final = 72
_TOKEN: Final = re.compile(r"[MLCZE]|-?\d+(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class Part:
    """One painted outline; `seam` strokes it, every other paint fills it."""

    paint: Paint
    path: str

    def outlines(self) -> list[list[Point]]:
        """The path as polygons, curves cut into straight pieces."""
        return list(_outlines(self.path))


@dataclass(frozen=True, slots=True)
class Half(Part):
    """A symmetric part, given by its right half."""

    def outlines(self) -> list[list[Point]]:
        """The whole outlines."""
        return [
            [(2 * _CENTRE_X - x, y) for x, y in reversed(right)] + right
            for right in _outlines(self.path)
        ]


@dataclass(frozen=True, slots=True)
class Pair(Part):
    """A part that stands on both sides, given by the right one."""

    def outlines(self) -> list[list[Point]]:
        """Both outlines."""
        right = list(_outlines(self.path))
        return right + [[(2 * _CENTRE_X - x, y) for x, y in outline] for outline in right]


SHAPES: Final[dict[str, tuple[Part, ...]]] = {
    "t-shirt": (
        Half("deep", "M 50 15 C 57 15 60 13 62 10 L 62 16 C 58 23 54 24 50 24"),
        Half(
            "fabric",
            "M 50 22 C 57 22 61 18 63 11 L 71 14 C 79 17 84 24 87 32 L 92 45 L 79 51 L 74 41 "
            "C 73 56 74 72 75 89 C 68 91 58 92 50 92",
        ),
        Half("trim", "M 50 22 C 57 22 61 18 63 11 L 66 12 C 64 21 58 26 50 26"),
        Pair("seam", "M 72 15 C 72 24 72 33 74 41"),
        Pair("seam", "M 90.5 42 L 77.5 48"),
        Half("seam", "M 50 89 C 58 89 68 88 75 86"),
    ),
    "sweater": (
        Half("deep", "M 50 10 C 55 10 58 9 60 8 L 61 13 C 58 17 54 18 50 18"),
        Half(
            "fabric",
            "M 50 16 C 56 16 60 13 62 9 C 70 11 76 14 79 20 C 85 34 90 54 93 78 "
            "C 90 80 86 81 82 81 C 79 65 76 50 73 40 C 74 56 74 70 73 84 C 66 86 58 86 50 86",
        ),
        Half("trim", "M 50 15 C 56 15 59 12 60 8 L 64 9.5 C 62 17 57 20 50 20"),
        Pair("trim", "M 92.4 74 L 93.6 83 C 90 85.5 87 86 83 86 L 81.6 77 C 86 77 90 76 92.4 74"),
        Half("trim", "M 50 84 C 58 84 66 84 73.2 82 L 72.4 90 C 66 92 58 92 50 92"),
        Pair("seam", "M 71 12 C 71 22 71 31 73 40"),
    ),
    "dress": (
        Pair("fabric", "M 57 17 L 60 6 L 62.5 6 L 64 18 Z"),
        Half(
            "fabric",
            "M 50 21 C 54 21 56 18 57 15 C 60 14 63 15 65 16 C 64 22 66 26 69 30 "
            "C 66 36 62 41 61 46 C 66 56 76 72 82 90 C 72 94 60 96 50 96",
        ),
        Half("trim", "M 50 44 C 54 44 58 44 61.4 43 L 61.4 49 C 58 50 54 50 50 50"),
        Pair("seam", "M 55 51 C 57 66 60 80 63 94"),
        Half("seam", "M 50 51 C 50 66 50 80 50 95"),
        Half("seam", "M 50 92 C 60 92 71 90 80.6 86.6"),
    ),
    "skirt": (
        Half("deep", "M 50 20 C 56 20 62 19 66 18 L 66 24 C 60 26 55 26 50 26"),
        Half(
            "fabric",
            "M 50 25 C 56 25 62 24 67 22 C 70 40 79 64 88 82 C 82 86 77 83 72 87 "
            "C 67 90 63 86 58 89 C 55 90 52 89 50 89",
        ),
        Half("trim", "M 50 22 C 56 22 62 21 66.5 18 L 67.6 27 C 62 30 56 30 50 30"),
        Pair("seam", "M 56 31 C 57 50 60 70 63 86"),
        Pair("seam", "M 62 30 C 65 48 71 68 76 83"),
        Half("seam", "M 50 31 C 50 50 50 70 50 88"),
    ),
    "trousers": (
        Half(
            "fabric",
            "M 50 13 C 57 13 63 13 68 12 C 71 30 75 62 77 94 C 72 96 66 96 61 95 "
            "C 58 76 54 56 50 40",
        ),
        Half("trim", "M 50 10 C 57 10 62 9 67.5 8 L 68.6 15 C 62 17 56 17 50 17"),
        Pair("seam", "M 58 17 C 58 23 62 27 69.4 27"),
        Half("seam", "M 50 17 C 50 25 50 32 50 40"),
        Pair("seam", "M 64 29 C 66 50 68 72 69 94"),
        Pair("trim", "M 76.7 89 L 77.1 95 C 72 97.4 66 97.4 60.8 96 L 60 90 C 66 91 71 91 76.7 89"),
    ),
    "sneaker": (
        Part(
            "fabric",
            "M 8 40 C 10 36 14 35 18 37 C 22 42 30 43 37 37 C 42 39 46 43 50 49 "
            "C 58 58 70 60 82 63 C 90 65 94 70 94 76 L 7 76 C 5 64 6 52 8 40 Z",
        ),
        Part("trim", "M 76 61.6 C 88 64 94 68 94 76 L 70 76 C 70 70 72 65 76 61.6 Z"),
        Part(
            "trim",
            "M 7.4 46 C 14 48 20 54 21 62 C 21.6 68 21 72 20 76 L 7 76 C 5.6 66 6 56 7.4 46 Z",
        ),
        Part(
            "light",
            "M 37 37 C 42 39 46 43 50 49 C 54 54 59 57 64 58.6 L 57 66 C 47 62 38 54 32 41.6 Z",
        ),
        Part("seam", "M 38 49 L 47 44 M 43 55 L 52 50 M 49 60 L 58 54.6 M 55 64 L 63 58.4"),
        Part("light", "M 5 75 L 95 75 C 97 80 96 85 91 86 L 12 86 C 7 86 4 81 5 75 Z"),
        Part("dark", "M 6 83 L 95.4 83 C 94.6 86.6 93 88 90 88 L 12 88 C 8.6 88 6.6 86.4 6 83 Z"),
        Part("seam", "M 25 74 C 27 66 33 60 42 58 M 31 74 C 33 68 39 64 47 63"),
    ),
    "handbag": (
        Pair("dark", "M 50 8 C 62 8 69 17 69 38 L 64 38 C 64 21 59 13 50 13 Z"),
        Half(
            "fabric",
            "M 50 36 C 60 36 70 36 79 37 C 83 38 84 41 85 46 L 91 84 C 92 90 89 92 84 92 "
            "C 72 93 60 93 50 93",
        ),
        Half(
            "trim",
            "M 50 36 C 60 36 70 36 79 37 C 82 38 84 40 84.6 44 L 86.6 56 C 74 65 60 68 50 68",
        ),
        Half("seam", "M 50 66 C 60 66 74 63 86.2 53.6"),
        Part("metal", "E 50 66 4.2 4.2"),
        Part("dark", "E 50 66 1.6 1.6"),
        Pair("metal", "E 66.5 41 2.6 2.6"),
        Half("seam", "M 50 90 C 62 90 74 90 84 89"),
    ),
    "backpack": (
        Half("dark", "M 50 5 C 57 5 60 8 60 15 L 56.4 15 C 56.4 10 54 8.6 50 8.6"),
        Pair("dark", "M 76 34 C 84 38 87 50 86 70 L 80 70 L 78 40 Z"),
        Half(
            "fabric",
            "M 50 11 C 66 11 76 20 77 36 L 80 84 C 80.4 91 77 94 71 94 L 50 94",
        ),
        Half("trim", "M 50 58 L 67 58 C 71 58 72.6 60 72.8 64 L 74 83 C 74 87 72 89 68 89 L 50 89"),
        Half("seam", "M 50 65 L 73 65"),
        Half("seam", "M 50 40 C 60 40 70 39 77 36"),
        Pair("dark", "M 59 36 L 63.4 36 L 63.4 58 L 59 58 Z"),
        Pair("metal", "M 58 54 L 64.4 54 L 64.4 60 L 58 60 Z"),
        Part("light", "M 45 75 L 55 75 L 55 81 L 45 81 Z"),
    ),
    "hat": (
        Part("trim", "E 50 66 46 15"),
        Part("fabric", "E 50 64.4 46 14.4"),
        Part("deep", "E 50 63 29 7.6"),
        Half("fabric", "M 50 22 C 64 21 73 27 75 40 L 78.4 61 C 71 68.6 60 70 50 70"),
        Half("dark", "M 50 59 C 61 59 70 57 77.2 52.4 L 78.6 61 C 71 68.6 60 70 50 70"),
        Part("seam", "M 33 33 C 42 28 56 27 68 32"),
    ),
    "mug": (
        Part(
            "fabric",
            "M 70 34 C 88 30 96 40 94 54 C 92 70 82 78 68 77 L 69 69.6 C 78 70 84.6 64 86 54 "
            "C 87.4 44 82 39.6 70.6 42 Z",
        ),
        Part(
            "fabric",
            "M 14 22 L 74 22 C 74 46 73 66 70 82 C 68.4 89 64 91 58 91 L 30 91 "
            "C 24 91 19.6 89 18 82 C 15 66 14 46 14 22 Z",
        ),
        Part("trim", "E 44 22 30 7.4"),
        Part("light", "E 44 22 27.6 6"),
        Part("wood", "M 17.6 24.6 C 24 20.6 64 20.6 70.4 24.6 C 64 29 24 29 17.6 24.6 Z"),
    ),
    "lamp": (
        Part("metal", "M 48 52 L 52 52 L 52 88 L 48 88 Z"),
        Half("wood", "M 50 62 C 56 64 60 70 60 77 C 60 83 56 87 52 89 L 50 89"),
        Half("wood", "M 50 87 L 64 87 C 68 87 70 90 70 94 L 50 94"),
        Half(
            "fabric",
            "M 50 12 L 66 12 C 67 12 68 13 68.4 14 L 83 54 C 83.4 56 82.6 57 81 57 L 50 57",
        ),
        Half("trim", "M 50 10.6 L 66 10.6 C 67.4 10.6 68.2 12 68.6 14 L 69.6 16.6 L 50 16.6"),
        Half("trim", "M 50 53 L 82.6 53 L 83.4 56 C 83.6 58 82.6 59 81 59 L 50 59"),
        Half("glow", "M 50 59 L 74 59 C 68 63 58 64.6 50 64.6"),
    ),
    "armchair": (
        Pair("wood", "M 70 80 L 79 80 L 77 96 L 73.6 96 Z"),
        Half("fabric", "M 50 12 C 64 12 74 14 76 24 C 78 36 78 50 77 64 L 50 64"),
        Half("seam", "M 50 17 C 62 17 69 19 70.4 27 C 71.6 36 72 44 71.6 52"),
        Half("trim", "M 50 55 C 60 54 68 54 72 56 C 75 58 75 68 72 70 L 50 70"),
        Half("fabric", "M 50 67 L 74 67 L 74 83 L 50 83"),
        Half("seam", "M 50 67.4 L 74 67.4"),
        Pair("fabric", "M 72 84 C 71 70 70 56 72 47 C 74 40 90 40 92 48 C 93 60 90 74 89 84 Z"),
        Pair("seam", "M 74.6 82 C 73.6 70 72.8 58 74.4 50 C 76 44.6 87 44.6 89.4 50"),
    ),
}


def _outlines(path: str) -> Iterator[list[Point]]:
    tokens = iter(_TOKEN.findall(path))
    outline: list[Point] = []

    def point() -> Point:
        return float(next(tokens)), float(next(tokens))

    for command in tokens:
        match command:
            case "M":
                if outline:
                    yield outline
                outline = [point()]
            case "L":
                outline.append(point())
            case "C":
                outline += _curve(outline[-1], point(), point(), point())
            case "E":
                outline = _ellipse(point(), point())
            case "Z":
                outline.append(outline[0])
    yield outline


def _curve(start: Point, first: Point, second: Point, end: Point) -> list[Point]:
    """A cubic Bézier curve without its start."""
    points = []
    for step in range(1, _CURVE_STEPS + 1):
        t = step / _CURVE_STEPS
        weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3)
        controls = (start, first, second, end)
        points.append(
            (
                sum(weight * x for weight, (x, _) in zip(weights, controls, strict=True)),
                sum(weight * y for weight, (_, y) in zip(weights, controls, strict=True)),
            )
        )
    return points


def _ellipse(centre: Point, radii: Point) -> list[Point]:
    angles = (2 * math.pi * step / _ELLIPSE_STEPS for step in range(_ELLIPSE_STEPS))
    return [
        (centre[0] + radii[0] * math.cos(angle), centre[1] + radii[1] * math.sin(angle))
        for angle in angles
    ]
