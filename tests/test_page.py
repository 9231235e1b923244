"""The page in a real browser: what it shows, what it withstands, and that keyboards, phones and big jobs can use it."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import s3fs
import yaml
from browser import CHROMIUM, Browser, Page, browser
from commands import mlb_batch
from ledger_rows import FINGERPRINT, annotation, error
from small_jobs import clips, job, job_file, manifest, spec

from mlb_batch import run
from mlb_batch.errors import OutputError
from mlb_batch.ledger import Ledger, RunFolder, publish
from mlb_batch.page import write_page
from mlb_batch.page.cards import Clip, Index, chosen, index
from mlb_batch.page.cards import clips as found_clips
from mlb_batch.page.gallery import MOST_TEXT_BYTES, gallery
from mlb_batch.page.kept import kept
from mlb_batch.planning import plan
from mlb_batch.spec import JobSpec
from mlb_batch.storage import open_store
from mlb_batch.video import FrameSize, Limits, Sampling, Wanted, read_frames

RUN = "20260101T000000Z-page"
PHONE = {"width": 390, "height": 844, "phone": True}
HARM = "<script>window.harm = 1</script><img src=x onerror='window.harm = 1'></script>"
KINDS = ("not_found", "empty", "corrupt", "encrypted", "timeout", "model_error")
ROWS = COLS = 4  # of the embedded model's frames


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    with browser() as one:
        yield one


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a job with 200 good clips, of which some try to do harm, and 12 errors of six kinds."""
    folder = tmp_path_factory.mktemp("page")
    paths = clips(folder / "videos", 200)
    ledger = opened(folder, passthrough=pa.schema([("title", pa.string())]))
    times = {path.stat().st_size: frame_times(path) for path in paths}
    rows = [row for n, path in enumerate(paths) for row in good(n, path, times[path.stat().st_size])]
    rows[0]["text"], rows[2]["text"] = HARM, "\x1b[31mred\x1b[0m \u202eevil 0000 \x00"
    rows[4]["text"], rows[6]["video_id"], rows[8]["title"] = "W" * 100_000, HARM, HARM
    rows[7]["video_id"] = HARM
    rows[10]["prompt"], rows[12]["text"] = HARM, "A heron waits by the weir.\nIt catches nothing."
    cuts = [cut for row in rows[:40] for cut in selection(row)]
    failures = [error(1000 + n, error_class=KINDS[n % 6]) for n in range(12)]
    failures[0]["message"] = failures[1]["uri"] = f"\x1b[2J{HARM}"
    failures[2]["prompt_id"] = "where, when"
    ledger.commit(rows, failures, cuts)
    publish(str(folder / "out"), FINGERPRINT, RUN)
    write_page(str(folder / "out"), folder / "page.html")
    return folder / "page.html"


def opened(folder: Path, passthrough: pa.Schema | None = None, **changes: Any) -> Ledger:
    """An output with the papers of one run over folder/videos."""
    told = job(folder, **changes)
    told |= {"prune": {"method": "adatp", "select": "per_video"}, "budget": {"ratio": 0.9}}
    spec, out = JobSpec.from_dict(told), RunFolder(str(folder / "out"), RUN)
    out.write_spec(spec.as_written())
    out.write_json("plan", {**plan(spec).to_json(), "fingerprint": FINGERPRINT})
    summary = {"fingerprint": FINGERPRINT, "expected": 424, "annotated": 400, "errors": 24, "wall_s": 61.0,
               "annotations_per_s": 6.5, "starved_by": "model", "gpu_busy_share": 0.9, "stopped": "",
               "flops_spent_of_budget": 60 * 10**9}  # fmt: skip
    out.write_json("summary", summary)
    return Ledger(str(folder / "out"), FINGERPRINT, RUN, passthrough)


def frame_times(path: Path) -> list[float]:
    with path.open("rb") as file:
        return list(read_frames(file, Wanted(Sampling(4), FrameSize((16, 16)), Limits())).times_s)


def good(n: int, path: Path, times_s: list[float]) -> list[dict[str, Any]]:
    """A caption and an answer about one clip."""
    clip = {"uri": str(path), "video_version": "", "clip_start_s": 0.0, "clip_end_s": 99.0, "frames_read": len(times_s),
            "frame_times_s": times_s, "title": f"take {n}", "choice": ""}  # fmt: skip
    cost = {"flops_executed": 250, "flops_vision": 50, "flops_prefill": 100, "flops_scoring": 50, "flops_generate": 50,
            "flops_planned": 400, "flops_vanilla": 1_000}  # fmt: skip
    cost = {name: mega * 10**6 for name, mega in cost.items()} | {"num_visual_tokens": 64, "num_kept_tokens": 8}
    caption = annotation(n, **clip, **cost, prompt_id="caption", prompt="Describe the video.")
    answer = annotation(
        5000 + n, **clip, **cost, prompt_id="first", prompt="What shape comes first?", text=f"shape {n}"
    )
    return [caption, {**answer, "video_id": caption["video_id"], "kind": "qa"}]


def selection(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Two cuts: the left half of every frame stays, then its first token alone."""
    tokens = np.arange(4 * ROWS * COLS)
    half, first = tokens[tokens % COLS < COLS // 2], tokens[tokens % (ROWS * COLS) == 0]
    same = {"annotation_id": row["annotation_id"], "frames": 4, "rows": ROWS, "cols": COLS, "segment": [0] * 4}
    empty: dict[str, list[int]] = {name: [] for name in ("score", "null_score", "kept_by_frame", "kept_by_place",
                                                        "plain_by_frame", "plain_by_place")}  # fmt: skip
    return [
        {**same, **empty, "layer": 0, "candidates": tokens.tolist(), "kept": half.tolist()},
        {**same, **empty, "layer": 3, "candidates": half.tolist(), "kept": first.tolist()},
    ]


def text_of(page: Page, selector: str) -> str:
    return str(page.value(f"document.querySelector({selector!r}).textContent"))


def count(page: Page) -> str:
    return text_of(page, "#count")


def search(page: Page, word: str) -> None:
    page.value("document.activeElement.blur()")
    page.key("/", "/")
    assert page.value("document.activeElement.id") == "search"
    page.type(word)
    page.until(f"document.querySelector('#search').value.trim() === {word!r}")


def choose(page: Page, status: str) -> None:
    page.value(f"document.querySelector('#status').value = {status!r}")
    page.value("document.querySelector('#status').dispatchEvent(new Event('change'))")


def pixel(page: Page, canvas: int, x: float, y: float) -> list[int]:
    """A colour in the middle of the cards' n-th frame, by shares of its sides."""
    return list(page.value(
        f"(() => {{ const c = document.querySelectorAll('#cards canvas')[{canvas}];"
        f"return [...c.getContext('2d').getImageData(c.width * {x}, c.height * {y}, 1, 1).data]; }})()"
    ))  # fmt: skip


def test_what_was_asked_what_it_cost_and_what_went_wrong(chromium: Browser, finished: Path) -> None:
    page = chromium.open(finished)
    assert page.complaints() == [] and page.requests() == [finished.as_uri()]
    assert count(page) == "212 of 212 clips"
    lead = text_of(page, ".lead")
    assert "400 answers about 200 videos" in lead and "12.5 %" in lead and "40 %" in lead and "6 kinds" in lead
    assert "Describe the video." in text_of(page, "#asked") and "adatp" in text_of(page, "#asked")
    bill = text_of(page, "#budget")
    assert "100 GFLOPs" in bill and "60 GFLOPs of " in bill and "Scoring" in bill, "spent by the budget's own measure"
    assert RUN in text_of(page, "#throughput") and page.value("document.querySelectorAll('svg.steps path').length") == 2
    assert all(kind in text_of(page, "#errors") for kind in KINDS) and "retry.errors=true" in text_of(page, "#errors")
    assert page.value("document.querySelectorAll('#errors h3').length") == 6


def test_the_tokens_that_were_kept_are_drawn_over_the_frames(chromium: Browser, finished: Path) -> None:
    page = chromium.open(finished)
    page.until("document.querySelector('#cards canvas').width === 144")
    inside, beside, far = (0.125, 0.125), (0.375, 0.625), (0.875, 0.625)  # the first token; the left half; the right
    last = [pixel(page, 0, *at) for at in (inside, beside, far)]
    assert "4 of 64 tokens from layer 3 on" in text_of(page, ".cut")
    page.value("document.querySelector('.cut input').focus()")
    page.key("ArrowLeft")
    middle = [pixel(page, 0, *at) for at in (inside, beside, far)]
    assert "32 of 64 tokens before the first layer" in text_of(page, ".cut")
    page.key("Home")
    plain = [pixel(page, 0, *at) for at in (inside, beside, far)]
    assert "64 of 64 tokens before any cut" in text_of(page, ".cut")
    assert last[0] == middle[0] == plain[0], "what is kept is seen as it is"
    assert middle[1] == plain[1] != last[1] and last[2] == middle[2] != plain[2], "what is gone is veiled"


def test_nothing_planted_in_a_manifest_or_an_answer_does_harm(chromium: Browser, finished: Path) -> None:
    raw = finished.read_text(encoding="utf-8")
    assert len(re.findall("</script>", raw)) == 3 and "\x1b" not in raw and "\x00" not in raw and "\u202e" not in raw
    for kind in ({"width": 1280}, PHONE):
        page = chromium.open(finished, **kind)  # type: ignore[arg-type]
        while page.value("!document.querySelector('#more').hidden"):
            page.value("document.querySelector('#more').click()")
        assert page.value("window.harm") is None and page.complaints() == [] and len(page.requests()) == 1
        assert page.value("document.querySelectorAll('main img, main script, main iframe').length") == 0
        shown = text_of(page, "#cards")
        assert shown.count("window.harm = 1</script>") >= 4, "it is there to be read, as text"
        assert "\\x1b[31mred\\x1b[0m \\u202eevil" in shown and "the first of 100,000 characters" in shown
        assert page.value("document.documentElement.scrollWidth <= innerWidth"), "nothing pushes the page wide"
        widest = (
            "Math.max(...[...document.querySelectorAll('article')].map((one) => one.scrollWidth - one.clientWidth))"
        )
        assert page.value(widest) == 0
        page.close()


def test_its_policy_stops_what_would_get_in(chromium: Browser, finished: Path) -> None:
    """The second line of defence: even a script that is in the page does not run, and nothing reaches the network."""
    page = chromium.open(finished)
    page.value("(() => { const s = document.createElement('script'); s.textContent = 'window.harm = 1';"
               "document.body.append(s); })()")  # fmt: skip
    page.value("(() => { const i = new Image(); i.src = 'http://127.0.0.1:9/x.png'; document.body.append(i); })()")
    assert page.value("fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'stopped')") == "stopped"
    assert page.value("window.harm") is None
    assert sum("Content Security Policy" in one for one in page.complaints()) >= 3


def test_search_and_filters(chromium: Browser, finished: Path) -> None:
    page = chromium.open(finished)
    search(page, "heron waits")
    page.until("document.querySelector('#cards mark')?.textContent === 'heron waits'")  # half of it finds as much
    assert count(page).startswith("1 of") and "It catches nothing." in text_of(page, "#cards")
    page.key("Escape")
    assert count(page) == "212 of 212 clips"
    choose(page, "failed")
    assert count(page) == "12 of 212 clips" and "timeout" in text_of(page, "#cards")
    choose(page, "ok")
    assert count(page) == "200 of 212 clips"
    choose(page, "")
    page.value("(select => { select.value = [...select.options].find(one => one.text === 'where, when').value;"
               " select.dispatchEvent(new Event('change')); })(document.querySelector('#prompt'))")  # fmt: skip
    assert count(page) == "1 of 212 clips" and "unanswered: where, when" in text_of(page, "#cards")
    search(page, "no such words")
    page.until("document.querySelector('#count').textContent.startsWith('0 of')")


def test_the_keyboard_reaches_everything_and_shows_where_it_is(chromium: Browser, finished: Path) -> None:
    page = chromium.open(finished)
    page.key("Tab")
    assert page.value("document.activeElement.textContent") == "Skip to the gallery"
    page.key("Enter")
    page.until("document.activeElement.id === 'gallery'")
    seen = []
    for _ in range(4):
        page.key("Tab")
        assert page.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        seen.append(page.value("document.activeElement.id || document.activeElement.type"))
    assert seen == ["search", "prompt", "status", "range"]
    unnamed = (
        "[...document.querySelectorAll('input, select, button, summary')].filter((one) => !(one.labels?.length"
        "|| one.ariaLabel || one.textContent.trim())).length"
    )
    assert page.value(unnamed) == 0
    before = page.value("document.querySelectorAll('#cards > li').length")
    page.value("document.querySelector('#more').focus()")
    page.key("Enter")
    assert page.value("[...document.querySelectorAll('article')].indexOf(document.activeElement)") == before


# The least contrast of any text with what is behind it, as WCAG counts it.
CONTRAST = """(() => {
  const rgb = (c) => (c.match(/^rgba?\\(([^)]+)\\)$/)?.[1].split(',').map(Number)) ?? null;
  const light = (c) => c.slice(0, 3).map((v) => v / 255)
    .map((v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = (e) => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
    if (c && (c[3] ?? 1) === 1) return c; } };
  let least = 21;
  for (const e of document.querySelectorAll('body *')) {
    if (!e.checkVisibility() || e.closest('.skip, script')) continue;
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))];
    least = Math.min(least, (Math.max(a, b) + .05) / (Math.min(a, b) + .05));
  }
  return least;
})()"""


@pytest.mark.parametrize("dark", [False, True])
def test_it_can_be_read_by_day_by_night_and_on_a_phone(chromium: Browser, finished: Path, dark: bool) -> None:
    page = chromium.open(finished, dark=dark, **PHONE)  # type: ignore[arg-type]
    assert page.value(CONTRAST) >= 4.5
    paper = page.value("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/)[0]")
    assert (int(paper) < 64) == dark
    assert page.value("document.documentElement.scrollWidth <= innerWidth")
    targets = "[...document.querySelectorAll('a, select, input, summary, button')].filter((e) => e.checkVisibility())"
    smallest = page.value(f"Math.min(...{targets}.map((e) => e.getBoundingClientRect().height))")
    assert smallest >= 24, "a thumb can hit it"


def test_ten_thousand_rows(chromium: Browser, tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "out"), FINGERPRINT, RUN)
    said = "A grey heron waits by the weir while the river runs high. " * 6
    for start in range(0, 10_000, 2_500):
        rows = [annotation(n, text=f"{said} {n}", choice="") for n in range(start, start + 2_500)]
        ledger.commit(rows, [])
    write_page(str(tmp_path / "out"), tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size < 10 << 20
    page = chromium.open(tmp_path / "page.html")
    assert count(page) == "10,000 of 10,000 clips"
    assert page.value("document.querySelectorAll('#cards > li').length") < 100, "only what is near is made"
    search(page, "high.  7777")  # two spaces stand before the number
    page.until("document.querySelector('#count').textContent.startsWith('1 of')")
    assert page.complaints() == []


def test_a_larger_job_is_sampled_evenly_by_whole_clips() -> None:
    keys = np.arange(8_000, dtype=np.uint64).repeat(3) * np.uint64(2**50)
    found = Index(keys, selected=keys[-3:-2], done=None, commits=())  # type: ignore[arg-type]
    some = chosen(found)
    assert 3 * len(some) <= 10_000 < 3 * len(some) + 3 and some[0] == int(keys[-1]), "recorded selections come first"
    assert chosen(found) == some


def test_each_version_of_a_video_is_shown_by_itself(tmp_path: Path) -> None:
    """With its own answers, and its own picture: that of the other is gone."""
    same = {"video_id": "v", "clip_start_s": 0.0, "clip_end_s": 9.0}
    for n, version in enumerate(("old", "old", "new")):
        answer = {**annotation(n, **same), "prompt_id": str(n), "video_version": version}
        Ledger(str(tmp_path), FINGERPRINT, f"run-{n}").commit([answer], [])
    store = open_store(str(tmp_path))
    cards = found_clips(store, FINGERPRINT, chosen(index(store, FINGERPRINT)), ())
    told = {card.first["video_version"]: [one["prompt_id"] for one in card.answers] for card in cards}
    assert told == {"old": ["0", "1"], "new": ["2"]} and len(cards) == 2


@pytest.mark.parametrize("sign", ["字", "<"])  # three bytes each, and six as it is written into the page
def test_its_size_is_bounded_whatever_the_texts(sign: str) -> None:
    def clip(n: int) -> Clip:
        row = {**annotation(n), "text": sign * 5_000, "video_id": f"v{n:05}", "clip_start_s": 0.0, "choice": ""}
        return Clip(n, [row])

    shown = gallery([clip(n) for n in range(4_000)], {}, [])
    assert 0 < shown.num_clips < 4_000 and len(shown.clips.encode()) < MOST_TEXT_BYTES + 4_000


def test_a_failure_names_all_prompts_that_it_leaves_unanswered() -> None:
    asked = ["where, when", *(f"prompt {n:03}" for n in range(100))]
    document = json.loads(gallery([], {}, [{**error(1), "prompt_id": prompt} for prompt in asked]).clips)
    (failure,) = document["clips"]
    assert sorted(document["prompts"][number]["id"] for number in failure["unanswered"]) == sorted(asked)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.unlink(), "not_found"),
        (lambda path: path.write_bytes(path.read_bytes()[:900]), "changed_during_read"),
        (None, "forbidden"),
    ],
)
def test_a_video_that_cannot_be_shown_says_why(tmp_path: Path, spoil: Any, reason: str) -> None:
    path = clips(tmp_path / "videos", 1)[0]
    ledger = opened(tmp_path)
    rows = [{name: value for name, value in row.items() if name != "title"} for row in good(0, path, frame_times(path))]
    stat = path.stat()
    for row in rows:
        row["video_version"] = f"{stat.st_mtime_ns}-{stat.st_size}"
        row["uri"] = row["uri"] if spoil else "/etc/hostname"
    ledger.commit(rows, [])
    if spoil:
        spoil(path)
    write_page(str(tmp_path / "out"), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert f'"problem":"{reason}' in page and '"picture":' not in page


def test_a_storage_that_gives_nothing_costs_the_pictures_and_not_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = clips(tmp_path / "videos", 1)[0]
    ledger = opened(tmp_path, input={"videos": f"{tmp_path}/videos/*", "allow": ["s3://nobody/"]})
    rows = [row for n in range(6) for row in good(n, path, frame_times(path))]
    ledger.commit([{**{k: v for k, v in row.items() if k != "title"}, "uri": "s3://nobody/v.mp4"} for row in rows], [])
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("HOME", str(tmp_path))
    s3fs.S3FileSystem.clear_instance_cache()
    write_page(str(tmp_path / "out"), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count('"problem":"') == 6 and "credentials" in page


def test_a_place_that_cannot_be_written_is_the_users_mistake(tmp_path: Path) -> None:
    Ledger(str(tmp_path / "out"), FINGERPRINT, RUN).commit([annotation(1)], [])
    with pytest.raises(OutputError, match=r"can't write .*/no/page\.html"):
        write_page(str(tmp_path / "out"), tmp_path / "no" / "page.html")


@pytest.mark.parametrize("name", ["plan.json", "summary.json", "progress.json", "environment.json", "spec.yaml"])
def test_a_damaged_paper_of_a_run_is_named_with_what_to_do(tmp_path: Path, name: str) -> None:
    opened_briefly(tmp_path)
    path = tmp_path / "out" / "runs" / RUN / name
    path.write_bytes(path.read_bytes()[:30] if path.exists() else b"{")
    with pytest.raises(OutputError, match=rf"{name}: .*; delete it; no row depends on it"):
        write_page(str(tmp_path / "out"), tmp_path / "page.html")


def test_the_page_of_the_fingerprint_that_is_asked_for(tmp_path: Path) -> None:
    opened_briefly(tmp_path)
    other = FINGERPRINT[::-1]
    Ledger(str(tmp_path / "out"), other, "run-2").commit([annotation(n, other) for n in range(2)], [])
    for fingerprint, rows in ((FINGERPRINT, 1), (other, 2)):
        assert write_page(str(tmp_path / "out"), tmp_path / "page.html", fingerprint)["annotations"] == rows
        assert fingerprint in (tmp_path / "page.html").read_text()


def opened_briefly(folder: Path) -> None:
    clips(folder / "videos", 1)
    opened(folder).commit([annotation(1)], [])


@pytest.mark.usefixtures("ray_cluster")
def test_the_pictures_of_a_job_with_a_relative_input_are_found_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = clips(tmp_path / "videos", 1)
    listed = manifest(tmp_path / "list.jsonl", [{"uri": f"videos/{path.name}"}])
    monkeypatch.chdir(tmp_path)
    relative = {"manifest": "list.jsonl", "allow": ["videos"]}
    absolute = {"manifest": str(listed), "allow": [str(tmp_path / "videos")]}
    assert plan(spec(tmp_path, input=relative)).fingerprint == plan(spec(tmp_path, input=absolute)).fingerprint
    run(spec(tmp_path, input=relative))
    monkeypatch.chdir("/")
    write_page(str(tmp_path / "out"), tmp_path / "page.html")
    shown = (tmp_path / "page.html").read_text()
    assert "1 of 1 clips with their frames" in shown and "forbidden" not in shown
    (written,) = (tmp_path / "out" / "runs").glob("*/spec.yaml")
    assert yaml.safe_load(written.read_text())["input"] == absolute


def test_a_token_leaves_once() -> None:
    cut = {"frames": 2, "rows": 1, "cols": 3}
    one = kept([{**cut, "layer": 5, "kept": [0, 4]}, {**cut, "layer": 2, "kept": [0, 2, 4, 5]}], [1])
    assert one.cuts == ((2, 4), (5, 2)) and one.tokens == 6
    assert list(b64decode(one.left_at)) == [0, 2, 1]


@pytest.mark.whole_run
@pytest.mark.slow
def test_the_page_of_a_real_run(chromium: Browser, tmp_path: Path) -> None:
    clips(tmp_path / "videos", 2)
    (tmp_path / "videos" / "empty.mp4").touch()
    path = job_file(tmp_path, prune={"method": "fastv", "selections": 1.0}, budget={"ratio": 0.5})
    assert mlb_batch("run", str(path))[0] == 3
    assert mlb_batch("report", str(tmp_path / "out"), "--html", str(tmp_path / "page.html"))[0] == 0
    page = chromium.open(tmp_path / "page.html")
    page.until("document.querySelectorAll('#cards canvas')[7]?.width === 144")
    assert count(page) == "3 of 3 clips" and page.complaints() == []
    assert "tokens from layer 2 on" in text_of(page, ".cut") and "empty" in text_of(page, "#errors")
