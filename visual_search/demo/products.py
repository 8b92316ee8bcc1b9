"""What the demo shop sells: every category in every colour and pattern, the same every time."""

import random
from dataclasses import dataclass
from itertools import product
from typing import Final

from visual_search.demo.shapes import SHAPES

COLOURS: Final = {
    "red": (196, 58, 56),
    "mustard": (224, 164, 52),
    "green": (64, 124, 92),
    "navy": (44, 66, 112),
    "rose": (226, 150, 166),
    "charcoal": (66, 68, 76),
}
PATTERNS: Final = ("plain", "striped", "dotted", "checked")

_BRANDS: Final = ("Hollow & Pine", "Atelier Dix", "Casa Lume", "Nordwerk", "Fennel")
_CLOTHES: Final = ("XS", "S", "M", "L", "XL")
_SHOES: Final = ("36", "37", "38", "39", "40", "41", "42", "43", "44")
_PRICES: Final = {
    "t-shirt": (14, 35),
    "sweater": (39, 99),
    "dress": (45, 140),
    "skirt": (29, 80),
    "trousers": (35, 110),
    "sneaker": (49, 130),
    "handbag": (59, 210),
    "backpack": (45, 120),
    "hat": (19, 49),
    "mug": (8, 19),
    "lamp": (39, 129),
    "armchair": (249, 690),
}
_SIZES: Final = {
    **dict.fromkeys(("t-shirt", "sweater", "dress", "skirt", "trousers"), _CLOTHES),
    "sneaker": _SHOES,
    "hat": ("S", "M", "L"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Product:
    """One product with its one picture; the fields but the last are its attributes.

    Attributes:
        price: In euros.
        sizes: Those in stock; empty where the category has none, or nothing is available.
        picture: The name of its picture's file, which says the format, too.
    """

    product_id: str
    title: str
    category: str
    brand: str
    colour: str
    pattern: str
    price: float
    available: bool
    sizes: tuple[str, ...]
    picture: str


def assortment() -> list[Product]:
    """All products, by category."""
    return [
        _product(number, category, colour, pattern)
        for number, (category, colour, pattern) in enumerate(
            product(SHAPES, COLOURS, PATTERNS), start=1
        )
    ]


def _product(number: int, category: str, colour: str, pattern: str) -> Product:
    chance = random.Random(number)  # noqa: S311 - the same shop every time
    cheapest, dearest = _PRICES[category]
    available = chance.random() < 0.85
    sizes = [size for size in _SIZES.get(category, ()) if available and chance.random() < 0.7]
    kind = chance.choices(("jpg", "png", "webp"), weights=(7, 2, 1))[0]
    return Product(
        product_id=f"P{number:04}",
        title=f"{pattern.capitalize()} {category} in {colour}",
        category=category,
        brand=chance.choice(_BRANDS),
        colour=colour,
        pattern=pattern,
        price=round(chance.randint(cheapest, dearest) - 0.05, 2),
        available=available,
        sizes=tuple(sizes),
        picture=f"{category}-{colour}-{pattern}.{kind}",
    )
