"""`mlb-batch bench read` on the videos of a folder, from a real S3 server on this machine.

python tests/bench_s3.py FOLDER [--rounds 3]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
from pathlib import Path

import s3fs
from commands import MLB_BATCH
from s3server import start_server

SUFFIXES = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mpg", ".flv"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", default="3")
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        server = start_server(stack)
        print(f"storage: {server.kind}", file=sys.stderr)
        os.environ.update(server.environment())
        bucket = server.make_bucket()
        store = s3fs.S3FileSystem()
        for path in sorted(path for path in given.folder.rglob("*") if path.suffix.lower() in SUFFIXES):
            store.put_file(str(path), f"{bucket}/{path.relative_to(given.folder).as_posix()}")
        asked = ["--videos", f"s3://{bucket}/", "--clips", "1000", "--threads", "1", "--rounds", given.rounds]
        return subprocess.run([MLB_BATCH, "bench", "read", *asked], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
