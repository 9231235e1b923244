"""The run's books, kept by the driver.

account.py   what arrived, what it cost, and whether it all adds up
commits.py   what waits to be committed
ending.py    how the run ended: its summary, its exit code, whether the job is complete
"""

from mlb_batch.books.account import STEPS, Books
from mlb_batch.books.commits import Uncommitted
from mlb_batch.books.ending import closed

__all__ = ["STEPS", "Books", "Uncommitted", "closed"]
