"""Real photos through the whole pipeline, against the plain reference of one image at a time."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests.catalogue import add_urls
from tests.end_to_end.workplace import Workplace
from tests.reference import reference_vector
from tests.shards import vectors_of

MODEL = "efficientnet_lite0"
# Cosine to the reference: minimum, first percentile, median.
TOLERANCE = {
    "fp32": (0.9995, 0.9999, 0.99999),
    "bf16": (0.985, 0.995, 0.998),
    "int8": (0.8, 0.9, 0.99),
}
Matrix = npt.NDArray[np.float32]


class Photos:
    """Labelled photos, their reference vectors, and a server that has them."""

    def __init__(self, folder: Path, per_category: int | None) -> None:
        with (folder / "labels.csv").open() as file:
            rows = list(csv.DictReader(file))
        name, label = list(rows[0])[:2]
        seen: dict[str, int] = {}
        self.paths: list[Path] = []
        self.labels: list[str] = []
        for row in rows:
            seen[row[label]] = seen.get(row[label], 0) + 1
            if per_category is None or seen[row[label]] <= per_category:
                self.paths.append(folder / "images" / Path(row[name]).name)
                self.labels.append(row[label])

    def publish(self, place: Workplace) -> None:
        for path in self.paths:
            place.server.serve(f"/{path.name}", path.read_bytes())
        add_urls(place.database, [place.server.url(f"/{path.name}") for path in self.paths])

    def reference(self) -> Matrix:
        return np.stack([reference_vector(path) for path in self.paths])

    def embedded(self, place: Workplace) -> Matrix:
        """The pipeline's vectors, in the order of `paths`."""
        by_id: dict[int, npt.NDArray[np.float32]] = {}
        for (uri,) in place.rows("SELECT uri FROM shards WHERE state = 'committed'"):
            by_id |= dict(zip(*(part.tolist() for part in vectors_of(uri)), strict=True))
        names = dict(place.rows("SELECT url, image_id FROM images"))
        return np.array(
            [by_id[names[place.server.url(f"/{path.name}")]] for path in self.paths], np.float32
        )


def cosines(a: Matrix, b: Matrix) -> npt.NDArray[np.float64]:
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a64, axis=1) * np.linalg.norm(b64, axis=1)
    return np.asarray((a64 * b64).sum(axis=1) / norms)


def retrieval(vectors: Matrix, labels: list[str]) -> tuple[float, float]:
    """Leave-one-out: accuracy of the nearest neighbour's category, and precision at 10."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    order = np.argsort(-similarity, axis=1)[:, :10]
    named = np.array(labels)
    hits = named[order] == named[:, None]
    return float(hits[:, 0].mean()), float(hits.mean())


def run(place: Workplace, photos: Photos, precision: str, runtime: str = "torch") -> Matrix:
    photos.publish(place)
    model: dict[str, Any] = {"embed": {"device": "cpu", "precision": precision, "runtime": runtime}}
    (result,) = place.extract(MODEL, download={"deadline_s": 30, "tries": 3}, **model)
    assert result.error is None
    assert (result.figures.done, result.figures.failed) == (len(photos.paths), 0)
    return photos.embedded(place)


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_vectors_equal_the_reference(
    place: Workplace, shared_data: Path, precision: str, runtime: str
) -> None:
    photos = Photos(shared_data / "clothing", per_category=4)
    vectors = run(place, photos, precision, runtime)
    found = cosines(vectors, photos.reference())
    least, _, middle = TOLERANCE[precision]
    assert found.min() >= least
    assert np.median(found) >= middle


@pytest.mark.long
def test_all_photos_are_downloaded_once_for_three_models(
    place: Workplace, shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = Photos(shared_data / "clothing", per_category=None)
    photos.publish(place)
    place.models["random"] = {
        "builder": "torchvision:resnet18",
        "weights": "random:0",
        "precision": "fp32",
    }
    names = (MODEL, "random", "tiny")
    precise = {"device": "cpu", "precision": "fp32", "runtime": "auto"}
    results = place.extract(*names, download={"deadline_s": 30, "tries": 3}, embed=precise)
    assert [(result.model, result.figures.done) for result in results] == [
        (name, len(photos.paths)) for name in names
    ]
    downloads = place.server.hits.total()
    with capsys.disabled():
        print(f"\n{len(photos.paths)} photos, {len(names)} models: {downloads} downloads")
    assert downloads == len(photos.paths)


@pytest.mark.long
def test_bf16_arithmetic_stays_within_its_tolerance(
    place: Workplace, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where bf16 is not fast a bf16 model is computed in fp32; here it is not."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    photos = Photos(shared_data / "clothing", per_category=4)
    found = cosines(run(place, photos, "bf16"), photos.reference())
    least, _, middle = TOLERANCE["bf16"]
    assert found.min() >= least
    assert middle <= np.median(found) < 0.99999


@pytest.mark.long
@pytest.mark.parametrize(
    ("precision", "runtime", "forced"),
    [
        ("fp32", "torch", False),
        ("fp32", "openvino", False),
        ("bf16", "torch", False),
        ("bf16", "torch", True),
        ("bf16", "openvino", False),
        ("int8", "openvino", False),
    ],
)
def test_all_photos_equal_the_reference_and_find_their_category(
    place: Workplace,
    shared_data: Path,
    precision: str,
    runtime: str,
    forced: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if forced:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    photos = Photos(shared_data / "clothing", per_category=None)
    vectors, reference = run(place, photos, precision, runtime), photos.reference()
    found = cosines(vectors, reference)
    figures = (found.min(), np.percentile(found, 1), np.median(found))
    nearest, precision_at_10 = retrieval(vectors, photos.labels)
    nearest_reference, precision_reference = retrieval(reference, photos.labels)
    with capsys.disabled():
        print(
            f"\n{precision} {runtime}{' arithmetic' * forced}: cosine minimum {figures[0]:.6f}, "
            f"1st percentile {figures[1]:.6f}, median {figures[2]:.7f}; "
            f"1-NN {nearest:.4f} (reference {nearest_reference:.4f}), "
            f"precision@10 {precision_at_10:.4f} (reference {precision_reference:.4f})"
        )
    assert all(value >= limit for value, limit in zip(figures, TOLERANCE[precision], strict=True))
    assert nearest == pytest.approx(0.757, abs=0.015)
    assert precision_at_10 == pytest.approx(0.655, abs=0.01)
    assert (
        abs(precision_at_10 - precision_reference)
        <= {
            "fp32": 0.002,
            "bf16": 0.01,
            "int8": 0.01,
        }[precision]
    )
