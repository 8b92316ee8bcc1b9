"""The networks that contenders run: vsearch's own, and a plain one."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from benchmarks.throughput.job import Job, Vectors
from visual_search import models
from visual_search.embed import Embedder, choose_device
from visual_search.models import weights
from visual_search.models.loading import load_network
from visual_search.models.spec import ModelSpec
from visual_search.settings import load_settings


class SameNetwork:
    """The very object that vsearch computes with: its precision, its layout, its normalisation."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._embedder = Embedder(*spec_and_weights(job), choose_device("auto"))

    def __call__(self, pixels: Tensor) -> Vectors:
        """`(B, 3, S, S)` uint8 RGB to `(B, D)` float32."""
        vectors: Vectors = self._embedder.embed(pixels)
        self._job.stamp(len(vectors))
        return vectors


class PlainNetwork:
    """The same weights in fp32, as torch has them when nobody has asked for more."""

    def __init__(self, job: Job) -> None:
        self._job = job
        spec, path = spec_and_weights(job)
        self._network: nn.Module = load_network(spec, path)
        self._mean, self._std = (
            torch.tensor(values).view(3, 1, 1)
            for values in (spec.preprocessing.mean, spec.preprocessing.std)
        )

    def __call__(self, pixels: Tensor) -> Vectors:
        """`(B, 3, S, S)` uint8 RGB to `(B, D)` float32."""
        with torch.inference_mode():
            normalised = (pixels.float() / 255 - self._mean) / self._std
            vectors: Vectors = self._network(normalised).numpy()
        self._job.stamp(len(vectors))
        return vectors


def channels_first(images: npt.NDArray[np.uint8]) -> Tensor:
    """`(B, H, W, 3)` or `(H, W, 3)` pixels, as image libraries give them, for torch."""
    return torch.from_numpy(np.moveaxis(images, -1, -3))


def spec_and_weights(job: Job) -> tuple[ModelSpec, Path | None]:
    settings = load_settings(job.config)
    spec = models.resolve(job.model, settings.models, precision=job.precision, home=job.folder)
    return spec, weights.obtain(spec, settings.weights, home=job.folder)
