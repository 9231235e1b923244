"""http as storage goes to the host that was named, and nowhere else: not where it redirects, not inside."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback import Handler, Server
from video_files import MODEL_SIZE, write_video

from mlb_batch.errors import OutputError, RowError
from mlb_batch.source.uris import UriPolicy
from mlb_batch.spec_parts import InputSpec
from mlb_batch.storage import DRIVERS, filesystem
from mlb_batch.video import Limits, Reader, Sampling, version_of
from mlb_batch.web import inside, is_metadata, refused

METADATA = ["169.254.169.254", "169.254.169.254:80", "2852039166", "0xa9fea9fe", "169.254.43518", "[fe80::1]",
            "[::ffff:169.254.169.254]", "[fd00:ec2::254]:80", "0251.0376.0251.0376"]  # fmt: skip


class Web(Server):
    """Gives a video, and under /moved sends elsewhere."""

    def __init__(self, data: bytes) -> None:
        super().__init__(_Handler)
        self.data, self.elsewhere = data, ""


class _Handler(Handler):
    server: Web

    def do_GET(self) -> None:
        moved = self.path.startswith("/moved")
        self.send_response(302 if moved else 200)
        if moved:
            self.send_header("Location", self.server.elsewhere)
        self.send_header("Content-Length", "0" if moved else str(len(self.server.data)))
        self.end_headers()
        if self.command == "GET" and not moved:
            self.wfile.write(self.server.data)

    do_HEAD = do_GET


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    with Web(write_video(tmp_path / "v.mp4").read_bytes()) as one:
        yield one


def test_a_redirect_is_refused_and_nothing_is_sent_there(web: Web) -> None:
    with socket.socket() as canary, Reader(Sampling(4), MODEL_SIZE, Limits(patience_s=1)) as reader:
        canary.bind(("127.0.0.1", 0))
        canary.listen()
        canary.settimeout(0)
        web.elsewhere = f"http://127.0.0.1:{canary.getsockname()[1]}/v.mp4"
        assert len(reader.read(f"{web.uri}/v.mp4").times_s) == 4
        for look in (reader.read, reader.probe, version_of):
            with pytest.raises(RowError) as caught:
                look(f"{web.uri}/moved.mp4")
            assert caught.value.error_class == "forbidden" and "redirects" in caught.value.message
        with pytest.raises(BlockingIOError):
            canary.accept()


def test_a_name_that_leads_inside_is_refused(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is allowed, and its owner lets it point here: the system's own look-up is what answers so."""
    usual = socket.getaddrinfo

    def rebound(host: object, *rest: object, **options: object) -> object:
        return usual("127.0.0.1" if host == "videos.example.com" else host, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", rebound)
    with Reader(Sampling(4), MODEL_SIZE, Limits(patience_s=1)) as reader, pytest.raises(RowError) as caught:
        reader.read(f"http://videos.example.com:{web.port}/v.mp4")
    assert caught.value.error_class == "forbidden" and "inside" in caught.value.message


@pytest.mark.parametrize("host", METADATA)
def test_metadata_addresses_are_refused_even_where_they_are_allowed(host: str) -> None:
    policy = UriPolicy.of(InputSpec(manifest="/videos.csv", allow=(f"http://{host}/",)))
    with pytest.raises(RowError, match=r"link-local|::"):
        policy.resolve(f"http://{host}/latest/meta-data/v.mp4")
    assert is_metadata(host)


def test_what_is_inside() -> None:
    assert all(
        inside(one) for one in ("127.0.0.1", "::1", "0.0.0.0", "169.254.169.254", "fe80::1%eth0", "::ffff:127.0.0.1")
    )
    assert not any(inside(one) for one in ("93.184.216.34", "10.0.0.1", "2606:4700::1111"))
    assert not any(is_metadata(one) for one in ("example.com", "10.0.0.1:80", "localhost", "[2606:4700::1111]"))


def test_this_machine_is_asked_only_where_it_is_named_as_such() -> None:
    named = [("localhost", "127.0.0.1"), ("localhost", "::1"), ("127.0.0.1", "127.0.0.1"), ("::1", "::1")]
    assert not any(refused(*one) for one in [*named, ("videos.example.com", "93.184.216.34")])
    hidden = [("videos.example.com", "127.0.0.1"), ("127.1", "127.0.0.1"), ("localhost", "169.254.169.254"),
              ("localhost", "0.0.0.0"), ("::ffff:127.0.0.1", "::ffff:127.0.0.1")]  # fmt: skip
    assert all(refused(*one) for one in [*hidden, ("224.0.0.1", "224.0.0.1"), ("videos.example.com", "ff02::1")])


@pytest.mark.parametrize(("uri", "package"), [("gs://bucket/v.mp4", "gcsfs"), ("az://box/v.mp4", "adlfs")])
def test_a_driver_that_is_not_installed_is_named(uri: str, package: str) -> None:
    with pytest.raises(OutputError, match=f"pip install {package}"):
        filesystem(uri)


@pytest.mark.parametrize("scheme", sorted(DRIVERS))
def test_what_a_bucket_lists_is_asked_each_time(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that lives for days would else see what was there when it first looked."""
    told: dict[str, object] = {}
    monkeypatch.setattr("fsspec.core.url_to_fs", lambda uri, **options: (told.update(options), uri))
    filesystem(f"{scheme}://bucket/out")
    assert told == {"use_listings_cache": False}
