"""The plan of a job: what it will cost, and the keep that its budget affords. Reads container headers, holds nothing.

    survey.py   the source, probed and tokenized, becomes a histogram of clip shapes
    build.py    plan(): survey -> budget -> solved keep -> Plan
    frozen.py   the solved schedule under OUTPUT, so that later runs with more videos reuse it
    text.py     describe(): the plan for people
"""

from mlb_batch.planning.build import plan
from mlb_batch.planning.frozen import freeze
from mlb_batch.planning.record import Budget, Estimate, Layer, Plan
from mlb_batch.planning.text import describe

__all__ = ["Budget", "Estimate", "Layer", "Plan", "describe", "freeze", "plan"]
