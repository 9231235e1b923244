"""The output: Parquet rows that are their own ledger.

Decision record: how files are committed
----------------------------------------
Needed: after any crash a plain read of one fingerprint's folder is exactly right, two writers never double a row, and
a run resumes without computing again what is there. Three ways were weighed.

1. One commit record per shard beside the data. Right only for readers that know the records: a plain read of the
   folder sees the data file of an attempt that lost. Rejected for that alone.
2. A table format (`write_delta`, `write_iceberg`). Ray Data 2.60 commits once, at the end of the whole write: a kill
   at 99 % keeps nothing, and the files it wrote lie in the folder as orphans that a plain Parquet read counts.
   Committing batches through the library by hand brings the conditional put below back, plus a log that only its own
   readers know.
3. A log of files written by one process that holds a lease.

Chosen is 3, with the files themselves as the log and nothing beside them. Captions are small, so only the driver writes
them. A commit is one file, `annotations/<fingerprint>/part-<number>.parquet` (and the like under errors/), made by one
conditional create (`If-None-Match: *` on S3, a hard link on a local disk): it is there whole or not at all. The number
is claimed by that create. If it is taken, another writer committed: that file is read, its rows are dropped from ours,
and the next number is tried; so every writer has read all files before its own, and no row can stand twice, lease or no
lease. If the file that is in the way carries our own token, an answer got lost and it was us. The number of a file
that was deleted is given to no rows again: two writers could then miss each other. The lease only spares two runs from
paying for the same work; correctness never rests on it.

The folder is named by the bare fingerprint: a `fingerprint=` folder beside the column of that name makes
`pyarrow.parquet.read_table(OUTPUT/annotations)` fail ("incompatible types: string vs dictionary").

Every file is sealed: its metadata hold the SHA-256 of the file itself (see seal.py), so `verify` finds any flipped bit.
Small files are merged by `compact`, under readers (compact.py has its own decision record).

log.py      what is done and what failed, and the commit of new rows
parts.py    the files that a log is made of
compact.py  small files become few, under readers
lease.py    one run writes to an output at a time
runs.py     what a run leaves beside its rows
records.py  what runs and compactions record of the files, so that lost ones are missed
seal.py     files that hold a checksum of themselves
ids.py      names made from content: of a setting, of an annotation
verify.py   every file and invariant, checked
"""

from mlb_batch.ledger.compact import compact, tidy
from mlb_batch.ledger.ids import DoneIds, annotation_id, fingerprint
from mlb_batch.ledger.lease import Lease, holder_of
from mlb_batch.ledger.log import Attempt, Ledger, pending
from mlb_batch.ledger.parts import written_columns
from mlb_batch.ledger.runs import RunFolder, new_run_id, publish, read_current
from mlb_batch.ledger.verify import verify

__all__ = [
    "Attempt",
    "DoneIds",
    "Lease",
    "Ledger",
    "RunFolder",
    "annotation_id",
    "compact",
    "fingerprint",
    "holder_of",
    "new_run_id",
    "pending",
    "publish",
    "read_current",
    "tidy",
    "verify",
    "written_columns",
]
