"""Draws the demo's product pictures: an item on a soft studio background, or on none at all."""

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

from visual_search.demo.products import COLOURS, Product
from visual_search.demo.shapes import SHAPES, Paint

Rgb = tuple[int, int, int]

_OVERSAMPLING: Final = 3
_GRID: Final = 100
_ITEM_PX: Final = 360
_MARGIN_PX: Final = 14
_QUALITY: Final = 88
# Width and height of the picture; the item fills most of the shorter side.
_FORMATS: Final = ((480, 480), (420, 540), (560, 440), (390, 500), (540, 540))
_STUDIOS: Final = ((243, 240, 235), (236, 240, 243), (240, 238, 242), (245, 245, 243))
_EXIF_ORIENTATION: Final = 0x0112
_ROTATE_90_TO_VIEW: Final = 6

_FIXED_PAINTS: Final[dict[Paint, Rgb]] = {
    "light": (246, 243, 236),
    "dark": (52, 46, 44),
    "wood": (176, 126, 84),
    "metal": (206, 186, 140),
    "glow": (255, 236, 190),
}
# The other paints are the item's own colour with so much of the shade in it.
_SHADED: Final[dict[Paint, float]] = {"fabric": 0, "trim": 0.24, "deep": 0.5, "seam": 0.55}
_SHADE: Final = (20, 16, 24)


def write_picture(product: Product, folder: Path) -> Path:
    """Draw a product's picture and write it; the same product gives the same bytes."""
    path = folder / product.picture
    chance = random.Random(product.product_id)  # noqa: S311 - the same picture every time
    item = _item(product.category, COLOURS[product.colour], product.pattern)
    if path.suffix == ".png":
        # Cut out, as shops keep it for their own pages.
        ImageOps.expand(item, _MARGIN_PX).save(path, compress_level=2)
        return path
    picture = _photographed(item, chance)
    if path.suffix == ".webp":
        picture.save(path, quality=_QUALITY, method=2)
    elif chance.random() < 0.15:
        # As many phones write it: the sensor's rows as they are, and how to turn them.
        exif = Image.Exif()
        exif[_EXIF_ORIENTATION] = _ROTATE_90_TO_VIEW
        picture.transpose(Image.Transpose.ROTATE_90).save(path, quality=_QUALITY, exif=exif)
    else:
        picture.save(path, quality=_QUALITY)
    return path


def _item(category: str, colour: Rgb, pattern: str) -> Image.Image:
    """The item alone, RGBA; its longer side about `_ITEM_PX`."""
    canvas = Image.new("RGB", (_ITEM_PX, _ITEM_PX), colour)
    cloth = _cloth(pattern, colour)
    for paint, mask, box in _masks(category):
        if paint == "fabric":
            canvas.paste(cloth.crop(box), box, mask)
        else:
            canvas.paste(_tone(paint, colour), box, mask)
    alpha, light = _body(category)
    shaded = np.clip(np.asarray(canvas, np.float32) * light[..., None], 0, 255).astype(np.uint8)
    item = Image.fromarray(shaded)
    item.putalpha(alpha)
    return item.crop(item.getbbox())


@cache
def _masks(category: str) -> list[tuple[Paint, Image.Image, tuple[int, int, int, int]]]:
    """What to paint where, in order: a coverage mask for each part, and the box it fills."""
    side = _ITEM_PX * _OVERSAMPLING
    scale = side / _GRID
    masks = []
    for part in SHAPES[category]:
        drawn = Image.new("L", (side, side))
        pen = ImageDraw.Draw(drawn)
        for outline in part.outlines():
            points = [(x * scale, y * scale) for x, y in outline]
            if part.paint == "seam":
                pen.line(points, fill=120, width=round(0.7 * scale), joint="curve")
            else:
                pen.polygon(points, fill=255)
        mask = drawn.reduce(_OVERSAMPLING)
        box = mask.getbbox()
        if box is not None:
            masks.append((part.paint, mask.crop(box), box))
    return masks


@cache
def _body(category: str) -> tuple[Image.Image, npt.NDArray[np.float32]]:
    """The item's silhouette, and how much light each of its pixels gets.

    Light falls from the upper left, and the edges turn away from it.
    """
    alpha = Image.new("L", (_ITEM_PX, _ITEM_PX))
    for paint, mask, box in _masks(category):
        if paint != "seam":
            alpha.paste(ImageChops.lighter(alpha.crop(box), mask), box)
    soft = np.asarray(alpha.filter(ImageFilter.GaussianBlur(_ITEM_PX / 26)), np.float32) / 255
    y, x = np.mgrid[0 : 1 : _ITEM_PX * 1j, 0 : 1 : _ITEM_PX * 1j].astype(np.float32)
    folds = 0.025 * np.sin(9 * x + 3 * np.sin(4 * y))
    return alpha, 0.72 + 0.36 * soft - 0.10 * (x + y - 1) + folds


def _photographed(item: Image.Image, chance: random.Random) -> Image.Image:
    """The item before a studio background, somewhere near the middle."""
    width, height = chance.choice(_FORMATS)
    room = _scaled((width, height), chance.uniform(0.74, 0.88))
    item = ImageOps.contain(item, room, Image.Resampling.BILINEAR)
    if chance.random() < 0.5:
        item = ImageOps.mirror(item)
    left = (width - item.width) // 2 + chance.randint(-10, 10)
    top = (height - item.height) // 2 + chance.randint(-8, 8)
    picture = _studio(width, height, chance.choice(_STUDIOS)).copy()
    # Blurred at a quarter of the size: as soft, and sixteen times quicker.
    shadow = Image.new("L", (width // 4, height // 4))
    outline = item.getchannel("A").reduce(4)
    shadow.paste(outline, ((left + width // 50) // 4, (top + width // 28) // 4))
    shadow = shadow.filter(ImageFilter.GaussianBlur(width / 110)).point(lambda v: v * 0.34)
    shadow = shadow.resize((width, height), Image.Resampling.BILINEAR)
    picture.paste((58, 50, 46), (0, 0), shadow)
    picture.paste(item, (left, top), item)
    return picture


def _scaled(size: tuple[int, int], factor: float) -> tuple[int, int]:
    return round(size[0] * factor), round(size[1] * factor)


@cache
def _studio(width: int, height: int, tint: Rgb) -> Image.Image:
    """A wall and a floor in one soft sweep, darker towards the corners."""
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    light = 1.015 - 0.07 * (x**2 + y**2) / 2 - 0.05 / (1 + np.exp(-14 * (y - 0.55)))
    return Image.fromarray(np.clip(light[..., None] * tint, 0, 255).astype(np.uint8))


def _tone(paint: Paint, colour: Rgb) -> Rgb:
    if paint in _FIXED_PAINTS:
        return _FIXED_PAINTS[paint]
    return _mixed(colour, _SHADE, _SHADED[paint])


def _mixed(colour: Rgb, other: Rgb, share: float) -> Rgb:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(colour, other, strict=True))
    return red, green, blue


def _second(colour: Rgb) -> Rgb:
    """What a pattern is printed with: cream, in the cloth's own light."""
    return _mixed(colour, (252, 246, 232), 0.86)


@cache
def _cloth(pattern: str, colour: Rgb) -> Image.Image:
    """A square of the fabric."""
    side = _ITEM_PX * _OVERSAMPLING
    cloth = Image.new("RGB", (side, side), colour)
    if pattern in _PRINTS:
        _PRINTS[pattern](ImageDraw.Draw(cloth, "RGBA"), side, _second(colour))
    return cloth.reduce(_OVERSAMPLING)


def _striped(pen: ImageDraw.ImageDraw, side: int, ink: Rgb) -> None:
    pitch = side / 12
    for row in range(12):
        pen.rectangle((0, (row + 0.55) * pitch, side, (row + 0.95) * pitch), fill=ink)


def _dotted(pen: ImageDraw.ImageDraw, side: int, ink: Rgb) -> None:
    pitch = side / 11
    radius = pitch * 0.23
    for row in range(12):
        for column in range(12):
            x = (column + 0.5 * (row % 2)) * pitch
            y = row * pitch
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=ink)


def _checked(pen: ImageDraw.ImageDraw, side: int, ink: Rgb) -> None:
    pitch = side / 9
    veil = (*ink, 120)
    for band in range(9):
        low, high = (band + 0.3) * pitch, (band + 0.8) * pitch
        pen.rectangle((0, low, side, high), fill=veil)
        pen.rectangle((low, 0, high, side), fill=veil)


_PRINTS: Final[dict[str, Callable[[ImageDraw.ImageDraw, int, Rgb], None]]] = {
    "striped": _striped,
    "dotted": _dotted,
    "checked": _checked,
}
