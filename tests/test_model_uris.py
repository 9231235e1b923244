"""A model behind a uri of the web or of the hub: what is new is seen, and what can't be fetched is one line."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import hub_of
from loopback import Handler, Server
from models import FAMILIES, folder

from mlb_batch.errors import ModelError, SpecError
from mlb_batch.spec import JobSpec
from mlb_batch.vlm.checkpoint import resolve


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Path(shutil.copytree(folder(FAMILIES["onevision"]), tmp_path / "model"))


class Web(Server):
    """A folder of files as /model, a page of links."""

    def __init__(self, folder: Path) -> None:
        super().__init__(_Handler)
        self.folder = folder
        self.uri += "/model"
        self.links = [f"/model/{path.name}" for path in folder.iterdir()]
        self.ranges = self.versions = self.sizes = True


class _Handler(Handler):
    server: Web

    def do_GET(self) -> None:
        web, page = self.server, self.path.rstrip("/") == "/model"
        links = "".join(f'<a href="{link}">a file</a>' for link in web.links)
        data = links.encode() if page else (web.folder / Path(self.path).name).read_bytes()
        asked = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "") if web.ranges else None
        sent = data[int(asked[1]) : int(asked[2]) + 1] if asked else data
        self.send_response(206 if asked else 200)
        headers = {"Content-Type": "text/html" if page else "application/octet-stream"}
        if web.sizes:
            headers["Content-Length"] = str(len(sent))
        if asked:
            headers["Content-Range"] = f"bytes {asked[1]}-{asked[2]}/{len(data)}"
        if web.versions:
            headers["ETag"] = f'"{hashlib.sha1(data).hexdigest()}"'
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(sent)

    do_HEAD = do_GET


@pytest.fixture
def web(place: Path) -> Iterator[Web]:
    with Web(place) as one:
        yield one


def change_config(place: Path) -> None:
    """To another one of as many bytes."""
    text = (place / "config.json").read_text()
    (place / "config.json").write_text(text.replace('"transformers_version": "5', '"transformers_version": "4'))


def test_a_folder_on_the_web_is_copied_again_when_it_changes(web: Web) -> None:
    first = resolve(web.uri)
    assert first.revision == resolve(str(web.folder)).revision and resolve(web.uri).folder == first.folder
    change_config(web.folder)
    assert resolve(web.uri).revision == resolve(str(web.folder)).revision != first.revision


def test_a_folder_of_the_hub_by_its_uri_is_copied_again_when_it_changes(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfFileSystem

    with hub_of(place, tmp_path / "hub", monkeypatch):
        first = resolve("hf://owner/name")
        assert first.revision == resolve(str(place)).revision
        change_config(place)
        HfFileSystem.clear_instance_cache()  # as the next run finds it
        assert resolve("hf://owner/name").revision == resolve(str(place)).revision != first.revision


def test_what_tells_no_version_is_refused_and_named(web: Web) -> None:
    web.versions = web.sizes = False
    with pytest.raises(ModelError, match=r"\A[^\n]*neither the size nor the version of \w+[^\n]*a bucket\Z"):
        resolve(web.uri)


def test_a_server_that_gives_no_parts_of_a_file_is_one_line(web: Web) -> None:
    (web.folder / "spiece.model").write_bytes(bytes(16 << 20))  # more than a client asks for at once
    web.links, web.ranges = [*web.links, "/model/spiece.model"], False
    with pytest.raises(ModelError, match=r"\A[^\n]*can't be fetched: [^\n.]*range requests; [^\n]*a bucket\Z"):
        resolve(web.uri)


def test_a_page_that_is_no_folder_is_not_copied(web: Web, tmp_path: Path) -> None:
    web.links = ["/models", "/pricing", "/model/tree/main", "/model/blob/main/config.json"]
    with pytest.raises(ModelError, match=r"nothing is at .*holds config\.json"):
        resolve(web.uri)
    assert not (tmp_path / "cache").exists()
    with pytest.raises(ModelError, match=r"a page for people; write llava-hf/llava-1\.5-7b-hf\Z"):
        resolve("https://huggingface.co/llava-hf/llava-1.5-7b-hf/tree/main")


def test_a_revision_is_of_a_hub_id() -> None:
    job = {
        "input": {"videos": "v/*.mp4"},
        "prompts": [{"id": "c", "kind": "caption", "text": "What?"}],
        "output": "out",
    }
    assert JobSpec.from_dict({**job, "model": {"id": "owner/name", "revision": "v2"}}).model.revision == "v2"
    with pytest.raises(SpecError, match=r"model: revision .*hf://owner/name@revision"):
        JobSpec.from_dict({**job, "model": {"id": "hf://owner/name", "revision": "v2"}})
