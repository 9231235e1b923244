"""Which uris of a manifest may be opened: the table of escapes, and none of them opens anything."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlb_batch.errors import InputError, RowError
from mlb_batch.source.uris import UriPolicy, base_of, default_allow
from mlb_batch.spec_parts import InputSpec

HTTP_ALLOWED = ("https://videos.example.com/pub/", "s3://bucket/in")

# Refused from a manifest in a folder on disk, and from one in s3://bucket/in with HTTP_ALLOWED.
NEVER = [
    "file:///etc/passwd",
    "FILE:///etc/passwd",
    "file:/etc/passwd",
    "file://localhost/etc/passwd",
    "file://etc/passwd",
    "local:///etc/passwd",
    "/etc/passwd",
    "//etc/passwd",
    "///etc/passwd",
    "/proc/self/environ",
    "../secret.mp4",
    "a/../../secret.mp4",
    "a/..",
    "..",
    "%2e%2e/secret.mp4",
    "%2E%2e%2Fsecret.mp4",
    "%252e%252e/secret.mp4",
    "a/%2e./b.mp4",
    "..\\secret.mp4",
    "\\\\host\\share\\a.mp4",
    "C:\\a.mp4",
    "a\0.mp4",
    "a\n.mp4",
    "a\x1b[31m.mp4",
    "a\x85.mp4",
    "",
    "x" * 5000,
    "http://169.254.169.254/latest/meta-data/x.mp4",
    "http://169.254.169.254%2f@videos.example.com/pub/a.mp4",
    "http://[::1]/a.mp4",
    "http://[fd00:ec2::254]/a.mp4",
    "http://127.0.0.1/a.mp4",
    "http://127.1/a.mp4",
    "http://2130706433/a.mp4",
    "http://0x7f000001/a.mp4",
    "http://0177.0.0.1/a.mp4",
    "http://localhost/a.mp4",
    "http://localhost./a.mp4",
    "http://metadata.google.internal/a.mp4",
    "http://videos.example.com/pub/a.mp4",
    "https://videos.example.com/private/a.mp4",
    "https://videos.example.com/pub/../private/a.mp4",
    "https://videos.example.com/public/a.mp4",
    "https://videos.example.com.evil.net/pub/a.mp4",
    "https://videos.example.com@evil.net/pub/a.mp4",
    "https://evil.net/?https://videos.example.com/pub/a.mp4",
    "https://videos.example.com:8443/pub/a.mp4",
    "https://[videos.example.com/pub/a.mp4",
    "https://videos.example.com\u2100/pub/a.mp4",
    "gopher://host/a",
    "rtmp://host/a",
    "rtsp://host/a",
    "ftp://host/a.mp4",
    "data:video/mp4;base64,AAAA",
    "concat:/etc/passwd|/etc/group",
    "subfile:,,start,0,end,9,,:/etc/passwd",
    "pipe:0",
    "fd:0",
    "async:/etc/passwd",
    "cache:/etc/passwd",
    "crypto:/etc/passwd",
    "simplecache::s3://bucket/in/a.mp4",
    "zip://a.mp4::s3://bucket/in/a.zip",
    "s3://other/in/a.mp4",
    "s3://bucket/in2/a.mp4",
    "s3://bucket/in/../other/a.mp4",
    "s3://bucket/in/%2e%2e/a.mp4",
    "S3A://bucket/in/a.mp4",
    "gs://bucket/in/a.mp4",
    "memory://a.mp4",
]


def refused(policy: UriPolicy, uri: str) -> bool:
    try:
        policy.resolve(uri)
    except RowError as error:
        assert error.error_class == "forbidden"
        assert error.message.isprintable() and len(error.message) < 400
        return True
    return False


def on_disk(folder: Path) -> UriPolicy:
    return UriPolicy.of(InputSpec(manifest=f"{folder}/videos.csv"))


@pytest.mark.parametrize("uri", NEVER, ids=[ascii(uri)[:50] for uri in NEVER])
def test_what_is_never_opened(tmp_path: Path, uri: str) -> None:
    (tmp_path.parent / "secret.mp4").write_bytes(b"secret")
    assert refused(on_disk(tmp_path), uri)
    assert refused(UriPolicy.of(InputSpec(manifest="s3://bucket/in/videos.csv", allow=HTTP_ALLOWED)), uri)


def test_what_is_opened(tmp_path: Path) -> None:
    local = on_disk(tmp_path)
    for uri in ("a.mp4", "sub/ü +%#?.mp4", "a..b.mp4", f"{tmp_path}/a.mp4"):
        assert local.resolve(uri) == (uri if uri.startswith("/") else f"{tmp_path}/{uri}")
    assert local.resolve(f"file://{tmp_path}/a.mp4") == f"file://{tmp_path}/a.mp4"
    bucket = UriPolicy.of(InputSpec(manifest="s3://bucket/in/videos.csv", allow=HTTP_ALLOWED))
    assert bucket.resolve("a b.mp4") == "s3://bucket/in/a b.mp4"
    for uri in ("./sub/a.mp4", "././sub/a.mp4", ".//sub/a.mp4"):
        assert local.resolve(uri) == f"{tmp_path}/sub/a.mp4" and bucket.resolve(uri) == "s3://bucket/in/sub/a.mp4"
    for key in ("s3://bucket/in/./a.mp4", "s3://bucket/in/.a/./b.mp4", "s3://bucket/in/a//b.mp4"):
        assert bucket.resolve(key) == key, "written in full, a key is what it is"
    assert bucket.resolve(".a/./b.mp4") == "s3://bucket/in/.a/./b.mp4"
    assert bucket.resolve("S3://bucket/in/100%.mp4") == "s3://bucket/in/100%.mp4"
    assert bucket.resolve("HTTPS://Videos.Example.com/pub/A.mp4?x=1") == "https://videos.example.com/pub/A.mp4?x=1"


def test_what_ray_shipped_with_a_submission_is_no_input(tmp_path: Path) -> None:
    """Its path and its times are others at every submission: each would annotate all of it anew."""
    shipped = tmp_path / "working_dir_files" / "_ray_pkg_0123456789abcdef"
    for place in (InputSpec(manifest=f"{shipped}/m.csv"), InputSpec(videos=f"{shipped}/*.mp4")):
        with pytest.raises(InputError, match="Ray's copy of the working directory"):
            UriPolicy.of(place).resolve(f"{shipped}/a.mp4")
    elsewhere = UriPolicy.of(InputSpec(manifest=f"{shipped}/m.csv", allow=("s3://bucket/",)))
    assert elsewhere.resolve("s3://bucket/a.mp4") == "s3://bucket/a.mp4"


def test_links_out_of_the_folder(tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir(), inside.mkdir()
    (outside / "a.mp4").write_bytes(b"x")
    (inside / "file.mp4").symlink_to(outside / "a.mp4")
    (inside / "folder").symlink_to(outside)
    (inside / "loop.mp4").symlink_to(inside / "loop.mp4")
    assert refused(on_disk(inside), "file.mp4") and refused(on_disk(inside), "folder/a.mp4")
    linked = tmp_path / "linked"
    linked.symlink_to(inside)
    assert not refused(on_disk(linked), "b.mp4"), "the folder itself may be reached by a link"


def test_the_default_is_the_manifests_own_bucket_or_folder() -> None:
    assert not refused(UriPolicy.of(InputSpec(manifest="s3://bucket/deep/videos.csv")), "s3://bucket/a.mp4")
    assert refused(UriPolicy.of(InputSpec(manifest="https://host/videos.csv")), "https://host/a.mp4")
    assert base_of(InputSpec(videos="s3://bucket/a/b*/c?.mp4")) == "s3://bucket/a"
    assert base_of(InputSpec(videos="s3://bucket/a/b/")) == "s3://bucket/a/b"
    assert default_allow("/data/videos") == ("/data/videos",)


@settings(deadline=None)
@given(st.text(max_size=60))
def test_no_text_escapes_the_folder(text: str) -> None:
    policy = UriPolicy("/srv/videos", ("/srv/videos",))
    try:
        resolved = policy.resolve(text)
    except RowError:
        return
    real = os.path.realpath(resolved.partition("://")[2] or resolved)
    assert f"{real}/".startswith("/srv/videos/")


def test_nothing_is_opened_and_nobody_is_called(tmp_path: Path) -> None:
    """A process that reads a manifest of escapes, with every open and every connection of it reported."""
    with socket.socket() as canary:
        canary.bind(("127.0.0.1", 0))
        canary.listen()
        canary.settimeout(0)
        port = canary.getsockname()[1]
        uris = [uri for uri in NEVER if uri] + [f"http://127.0.0.1:{port}/a.mp4"]
        (tmp_path / "videos.jsonl").write_text("".join(json.dumps({"uri": uri}) + "\n" for uri in uris))
        code = textwrap.dedent(f"""
            import sys
            from mlb_batch.source import videos
            from mlb_batch.spec import JobSpec
            spec = JobSpec.from_dict({{"input": {{"manifest": {str(tmp_path / "videos.jsonl")!r}}},
                "prompts": [{{"id": "c", "kind": "caption", "text": "Describe."}}], "output": "out"}})
            opened = []
            def hook(event, args):
                if event in ("open", "socket.connect", "socket.getaddrinfo"):
                    opened.append(str(args[0] if event == "open" else args))
            sys.addaudithook(hook)
            problems = [video.problem for video in videos(spec)]
            assert len(problems) == {len(uris)} and {{one.error_class for one in problems}} == {{"forbidden"}}, problems
            print("\\n".join(sorted({{one for one in opened if not one.endswith((".py", ".pyc", ".so"))}})))
        """)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [str(tmp_path / "videos.jsonl")]
        with pytest.raises(BlockingIOError):
            canary.accept()
