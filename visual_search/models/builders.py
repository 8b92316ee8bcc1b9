"""Networks that are built in besides torchvision's.

They are Python entries like a user's own: `configs/models.toml` names them with a revision, and
both are part of their models' identity. So a function here keeps its name and place.
"""

from torch import nn

from visual_search.errors import ModelError


def efficientnet_lite0() -> nn.Module:
    """EfficientNet-Lite0: EfficientNet-B0 without squeeze-and-excitation, with ReLU6.

    Raises:
        ModelError: The package that holds the network is not installed.
    """
    try:
        from efficientnet_lite_pytorch import EfficientNet  # noqa: PLC0415 - an extra
    except ImportError:
        raise ModelError(
            "efficientnet_lite0 needs the Python package efficientnet_lite_pytorch; "
            '`pip install "visual-search[efficientnet]"`'
        ) from None
    network: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    return network
