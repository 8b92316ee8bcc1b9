"""Prometheus' text format, read by the real client's parser."""

from prometheus_client.parser import text_string_to_metric_families

Series = tuple[str, frozenset[tuple[str, str]]]


def read(text: str) -> dict[Series, float]:
    """The value of each series; refuses what is no metric, has no help, or is there twice."""
    values: dict[Series, float] = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        assert family.type in {"counter", "gauge"}
        for sample in family.samples:
            key = series(sample.name, **sample.labels)
            assert key not in values
            values[key] = sample.value
    return values


def series(name: str, **labels: str) -> Series:
    return name, frozenset(labels.items())
