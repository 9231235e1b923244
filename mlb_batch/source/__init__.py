"""What there is to annotate: a manifest, a glob or a prefix becomes a stream of videos with their prompts.

model.py      the nouns: Video, Prompt, Inspection
read.py       the input read twice: to check all of it, and as the stream
table.py      manifest files, row by row
listing.py    a glob or a prefix; links.py: through links to folders
uris.py       which uris may be opened
clips.py      long videos become clips
questions.py  the prompts of one row
"""

from mlb_batch.source.clips import clip_spans
from mlb_batch.source.model import InputRow, Inspection, Prompt, Video
from mlb_batch.source.read import inspect, videos
from mlb_batch.source.uris import anchored

__all__ = ["InputRow", "Inspection", "Prompt", "Video", "anchored", "clip_spans", "inspect", "videos"]
