"""What there is to annotate: a manifest, a glob or a prefix becomes a stream of videos with their prompts."""

from mlb_batch.source.clips import clip_spans
from mlb_batch.source.model import Inspection, Prompt, Video
from mlb_batch.source.read import inspect, videos
from mlb_batch.source.uris import anchored

__all__ = ["Inspection", "Prompt", "Video", "anchored", "clip_spans", "inspect", "videos"]
