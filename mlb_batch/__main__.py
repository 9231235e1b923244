"""python -m mlb_batch: the commands, where their script is not on the path."""

from __future__ import annotations

from mlb_batch.cli import main

if __name__ == "__main__":
    main()
