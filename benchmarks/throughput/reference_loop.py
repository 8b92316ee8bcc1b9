"""What one would write in an afternoon: an image at a time, requests, Pillow and fp32."""

from io import BytesIO

import numpy as np
import requests
from PIL import Image

from benchmarks.throughput.job import Job
from benchmarks.throughput.network import PlainNetwork, channels_first, spec_and_weights


def main() -> None:
    job = Job.of_command_line()
    network = PlainNetwork(job)
    size_px = spec_and_weights(job)[0].preprocessing.size
    vectors = []
    with requests.Session() as session:
        for url in job.urls:
            answer = session.get(url, timeout=30)
            answer.raise_for_status()
            image = Image.open(BytesIO(answer.content)).convert("RGB")
            resized = image.resize((size_px, size_px), Image.Resampling.BILINEAR)
            pixels = channels_first(np.array(resized))
            vectors.append(network(pixels.unsqueeze(0)))
    job.write_vectors(job.urls, np.concatenate(vectors))


if __name__ == "__main__":
    main()
