"""A model by its hub id: which files come, what is refused before they do, and what a failed download means."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from hub_server import COMMIT, Hub, hub_of
from models import FAMILIES, folder, pair_folder

from mlb_batch.errors import JobError, ModelError
from mlb_batch.vlm import checkpoint
from mlb_batch.vlm.checkpoint import resolve

PAIR = "prune.feature_model"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    place = Path(shutil.copytree(folder(FAMILIES["onevision"]), tmp_path / "repository"))
    with hub_of(place, tmp_path / "cache", monkeypatch) as one:
        yield one


def test_a_commit_names_its_content_which_is_not_read_again(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    (hub.folder / "original").mkdir()
    (hub.folder / "original/consolidated.safetensors").write_bytes(b"another program's form of the weights")
    (hub.folder / "pytorch_model.bin").write_bytes(b"no")
    monkeypatch.setattr(checkpoint, "_content_hash", lambda folder: pytest.fail("all weights were read for a hash"))
    found = resolve("owner/name")
    assert found.revision == COMMIT and found.shape.family == "llava_onevision"
    assert "model.safetensors" in hub.sent and len(set(hub.sent)) == len(hub.sent)
    assert not [name for name in hub.sent if "/" in name or name.endswith(".bin")]
    hub.sent.clear()
    assert resolve("owner/name", COMMIT) == found and not hub.sent


@pytest.mark.parametrize(("key", "said"), [("model.id", "no known architecture"), (PAIR, "no text/vision pair")])
def test_what_the_config_refuses_costs_no_download_of_weights(key: str, said: str, hub: Hub) -> None:
    config = json.loads((hub.folder / "config.json").read_text())
    (hub.folder / "config.json").write_text(json.dumps({**config, "model_type": "llava_next_video"}))
    with pytest.raises(ModelError, match=rf"\A{key}: 'owner/name': model_type 'llava_next_video'.* {said}"):
        resolve("owner/name", key=key)
    assert hub.sent and not [name for name in hub.sent if name.endswith(".safetensors")]


def test_a_pair_comes_from_the_hub_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub_of(pair_folder(), tmp_path, monkeypatch):
        assert resolve("owner/name", key=PAIR).revision == COMMIT


def closed(path: str, request: BaseHTTPRequestHandler) -> bool:
    """Without a word, as by a proxy that gives up."""
    request.close_connection = True
    return True


def another_page(path: str, request: BaseHTTPRequestHandler) -> bool:
    """Of whoever lets nobody through who has not logged in."""
    request.send_response(200)
    request.send_header("Content-Length", "6")
    request.end_headers()
    request.wfile.write(b"<html>" if request.command == "GET" else b"")
    return True


def broken_off(path: str, request: BaseHTTPRequestHandler) -> bool:
    if not (path.endswith("model.safetensors") and request.command == "GET"):
        return False
    request.send_response(200)
    request.send_header("Content-Length", "100000")
    request.end_headers()
    request.wfile.write(b"half")
    return closed(path, request)


@pytest.mark.parametrize("fault", [closed, another_page, broken_off])
def test_a_download_that_breaks_is_one_line_and_can_be_run_again(fault: Any, hub: Hub) -> None:
    hub.fault = fault
    with pytest.raises(JobError, match=r"\A[^\n]*'owner/name'[^\n]*run the same command again to resume\Z"):
        resolve("owner/name")
    hub.fault = lambda path, request: False
    assert resolve("owner/name").revision == COMMIT


def test_weights_that_are_never_fetched_are_said(hub: Hub) -> None:
    (hub.folder / "model.safetensors").rename(hub.folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"'owner/name' holds no \.safetensors weights.*\.bin.*refused.*convert"):
        resolve("owner/name")


def test_a_cache_of_the_hub_that_can_not_be_written_is_named(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ModelError, match=r"\A[^\n]*'owner/name' can't be kept here.*set HF_HOME[^\n]*\Z"):
        resolve("owner/name")
