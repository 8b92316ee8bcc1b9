"""All models' work over time: progress, speed, failures, hosts and shards."""

from visual_search.report.overview.gather import gather
from visual_search.report.overview.render import render

__all__ = ["gather", "render"]
