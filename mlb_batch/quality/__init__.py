"""Whether quality held on the user's own videos: the canary of a job, and the preview before it.

canary.py     a share of the job, answered unpruned and with random pruning too, before the rest is run
preview.py    a few videos, side by side, before the job
rivals.py     the same job with another method
agreement.py  how far two runs agree, answer by answer
"""

from mlb_batch.quality.canary import canary
from mlb_batch.quality.preview import preview, side_by_side

__all__ = ["canary", "preview", "side_by_side"]
