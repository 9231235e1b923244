"""Whether quality held on the user's own videos: the canary of a job, and the preview before it."""

from mlb_batch.quality.canary import canary
from mlb_batch.quality.preview import preview, side_by_side

__all__ = ["canary", "preview", "side_by_side"]
