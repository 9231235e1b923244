"""The plan of a job: what it will cost, and the keep that its budget affords. Reads container headers, holds nothing.

setup.py      what the spec names, resolved: checkpoint, paired model, method
survey.py     the source, probed and tokenized, becomes a histogram of clip shapes
solving.py    the histogram and the budget become a keep
frozen.py     ... which is kept under OUTPUT, so that later runs with more videos reuse it
identity.py   the fingerprint, and the key of the frozen schedule
tally.py      the job at that keep, in every measure
advice.py     what the user should know before it starts
record.py     Plan: all of it as one value
assembly.py   what was found and solved, as one
build.py      plan(): all of it together
content.py    settle(): the plan, once a pass over the frames has told how much clips repeat themselves
text.py       describe(): the plan for people
"""

from mlb_batch.planning.build import plan, pricer_of
from mlb_batch.planning.content import settle
from mlb_batch.planning.frozen import freeze
from mlb_batch.planning.record import Budget, Estimate, Layer, Plan
from mlb_batch.planning.setup import Setup, planned_with, setup
from mlb_batch.planning.text import describe

__all__ = [
    "Budget", "Estimate", "Layer", "Plan", "Setup", "describe", "freeze", "plan", "planned_with", "pricer_of", "settle",
    "setup",
]  # fmt: skip
