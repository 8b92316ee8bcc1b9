"""Which runtimes there are for a model here, told without loading any of them."""

from importlib.metadata import PackageNotFoundError, version

from visual_search.errors import SettingsError
from visual_search.models.spec import ModelPrecision
from visual_search.settings import Device, RuntimeName


def openvino_release() -> str | None:
    """Such as `2026.4.1`; `None` where it is not installed."""
    try:
        return version("openvino")
    except PackageNotFoundError:
        return None


def check_runtime(
    precision: ModelPrecision, asked: RuntimeName, device: Device, *, compiled: bool
) -> None:
    """See that what was asked for can be had together, and is installed.

    Args:
        precision: The model's.
        asked: The runtime.
        device: Where it computes; with `auto` it may turn out later that it cannot.
        compiled: Whether torch's compiler was asked for.

    Raises:
        SettingsError: It cannot.
    """
    int8 = precision == "int8"
    what = "precision int8" if int8 else "runtime openvino"
    if compiled and (asked == "openvino" or int8):
        raise SettingsError(f"--compile is for runtime torch; {what} has a compiler of its own")
    if int8 and asked == "torch":
        raise SettingsError("precision int8 needs runtime openvino; leave out --runtime torch")
    if asked != "openvino" and not int8:
        return
    if device not in ("auto", "cpu"):
        raise SettingsError(f"{what} is computed on the CPU, not on {device}; --device cpu")
    if openvino_release() is None:
        raise SettingsError(
            f"{what} needs OpenVINO, which is not installed here; "
            '`pip install "visual-search[openvino]"`'
        )
