"""The job as a script, for `ray job submit --working-dir . -- python jobs/annotate.py JOB.yaml [--set ...]`.

The same code as `mlb-batch run`; it also works where only the working directory was shipped and nothing is installed.
"""

import os
import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[1])
sys.path.insert(0, ROOT)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH")]))  # for child processes

from mlb_batch.cli import annotate  # noqa: E402

if __name__ == "__main__":
    annotate()
