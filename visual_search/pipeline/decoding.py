"""Bodies into pixels of each model's size: what the decoder threads of a run do."""

import queue
from collections.abc import Mapping, Sequence

from torch import Tensor

from visual_search import decode
from visual_search.decode import DecoderProcess
from visual_search.embed import prepare
from visual_search.errors import ImageError
from visual_search.images import ClaimedImage, Download, FailedImage
from visual_search.models.spec import Preprocessing
from visual_search.pipeline.core_time import RunCoreTime
from visual_search.pipeline.model_run import ModelRun, Picture, WantedImage


class Decoding:
    """One thread's decoder at work."""

    def __init__(
        self,
        decoder: DecoderProcess,
        core_time: RunCoreTime,
        pictures: queue.SimpleQueue[Picture | None],
    ) -> None:
        self._decoder = decoder
        self._core_time = core_time
        self._pictures = pictures

    def decode(self, wanted: WantedImage, download: Download) -> None:
        """Decode an image once for all models that take it whole, or of the same reduced size."""
        wishes: dict[int | None, list[tuple[ModelRun, ClaimedImage]]] = {}
        for run, image in wanted.claims:
            if run.cut.is_set():
                run.recorder.put(image)
            else:
                wishes.setdefault(run.model.spec.least_px, []).append((run, image))
        cpu_before = self._decoder.cpu_seconds
        core_times = wanted.core_times
        with self._core_time.measured("decode", core_times):
            for least_px, claims in wishes.items():
                self._decode_for(claims, download, least_px)
        spent = self._decoder.cpu_seconds - cpu_before
        self._core_time.add("decode", spent, core_times, in_child=True)

    def _decode_for(
        self,
        claims: Sequence[tuple[ModelRun, ClaimedImage]],
        download: Download,
        least_px: int | None,
    ) -> None:
        wanted = {run.model.spec.preprocessing for run, _ in claims}

        def to_tensors(picture: decode.Picture) -> tuple[Mapping[Preprocessing, Tensor], int, int]:
            tensors = {each: prepare(picture.pixels, each) for each in wanted}
            return tensors, picture.width, picture.height

        try:
            tensors, width, height = self._decoder.decode(
                download.body, to_tensors, least_px=least_px
            )
        except ImageError as error:
            for run, image in claims:
                run.recorder.put(FailedImage(image=image, reason=error.reason, detail=error.detail))
            return
        for run, image in claims:
            self._pictures.put(
                Picture(
                    run=run,
                    image=image,
                    tensor=tensors[run.model.spec.preprocessing],
                    content_sha256=download.content_sha256,
                    validators=download.validators,
                    width=width,
                    height=height,
                )
            )
