"""What the captioner says of an answer: sampling, choices, stops, counts, and bills that add up."""

from __future__ import annotations

import copy
import itertools
import json
import math
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from cost_cases import added
from engine_runs import prompter, pruning
from models import FAMILIES, Spec, checkpoint, eager, folder, pixels
from transformers import AutoModelForImageTextToText

from mlb_batch.cost import flops
from mlb_batch.cost.schedule import WHOLE
from mlb_batch.errors import RowError
from mlb_batch.prune import make
from mlb_batch.vlm.captioner import Answer, Ask, Captioner, Clip, Settings
from mlb_batch.vlm.checkpoint import resolve
from mlb_batch.vlm.choices import choice_text, parse_letter
from mlb_batch.vlm.generate import Sampling, generate
from mlb_batch.vlm.prefill import prefill
from mlb_batch.vlm.prompts import MAX_PROMPT_TOKENS

SPEC = FAMILIES["onevision"]
LETTERS = ("a man", "a dog", "a red ball", "nothing")


def captioner(temperature: float = 0.0, name: str = "adatp", spec: Spec = SPEC, **more: Any) -> Captioner:
    given = Settings(
        pruning(name), 300_000, **{"max_new_tokens": 8, "temperature": temperature, "device": "cpu", **more}
    )
    return Captioner(checkpoint(spec), given)


def ask(annotation_id: str, text: str = "What is it?") -> Ask:
    return Ask(annotation_id, "qa", text)


def answers(some: list[Answer | RowError]) -> list[Answer]:
    assert all(isinstance(a, Answer) for a in some)
    return [a for a in some if isinstance(a, Answer)]


def texts(made: Captioner, clips: list[Clip]) -> list[list[str]]:
    return [[a.text for a in answers(some)] for some in made.annotate(clips)]


# Sampling.


def test_a_sampled_text_does_not_depend_on_its_batch() -> None:
    made = captioner(temperature=1.0)
    clips = [Clip(pixels(SPEC, n, n), tuple(ask(f"{n}-{i}") for i in range(1 + n % 3))) for n in (2, 5, 3, 1)]
    alone = [texts(made, [clip])[0] for clip in clips]
    assert texts(made, clips) == alone
    assert texts(made, clips[::-1]) == alone[::-1]
    assert texts(captioner(temperature=1.0), clips) == alone


def test_a_sampled_text_differs_by_annotation_and_by_seed() -> None:
    frames = pixels(SPEC, 3, 1)
    clip = Clip(frames, tuple(ask(f"id-{i}") for i in range(12)))
    (first,), (second,) = texts(captioner(temperature=1.0), [clip]), texts(captioner(temperature=1.0, seed=1), [clip])
    assert len(set(first)) > 6 and first != second
    (greedy,) = texts(captioner(), [clip])
    assert len(set(greedy)) == 1


def test_sampled_tokens_follow_the_distribution() -> None:
    """The first token of 600 annotations of one prompt, against the softmax of its logits at that temperature."""
    made, temperature, count = captioner(name="none"), 0.7, 600
    first = Captioner(checkpoint(SPEC), Settings(pruning("none"), WHOLE, 1, device="cpu"))
    source = Clip(pixels(SPEC, 2, 1), (ask("x"),))
    with torch.inference_mode():
        ready = first._ready(source, [first._suffix(source.asks[0])])
        from mlb_batch.vlm.meter import Meter

        (given,) = first._preparer.inputs([ready.source], [Meter(first.shape)])
        ((state,),) = prefill(first._decoder, first.settings.method, [given], [Meter(first.shape)], 1)
        said = generate(
            made._decoder, [state] * count, [Sampling(1, temperature, seed) for seed in range(count)], frozenset()
        )
        probability = torch.softmax(made._decoder.logits(state.last_D[None])[0] / temperature, dim=-1)
    seen = Counter(s.tokens[0] for s in said)
    likely = [int(t) for t in probability.topk(5).indices]
    for token in likely:
        p = float(probability[token])
        assert abs(seen[token] / count - p) < 5 * math.sqrt(p * (1 - p) / count)
    assert all(probability[token] > 1e-6 for token in seen)


# Choices.


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("B", "a dog"), ("b", "a dog"), ("B.", "a dog"), ("(B)", "a dog"), ("B) a dog", "a dog"), ("[B]", "a dog"),
        ("B: it barks", "a dog"), (" C\n", "a red ball"), ("D. nothing", "nothing"), ("a dog", "a dog"),
        ("A dog.", "a dog"), ("A red ball", "a red ball"), ("nothing", "nothing"), ("E", ""), ("", ""), ("Because", ""),
        ("both", ""), ("A cat", ""), ("B it barks", "a dog"),
        ("B.A dog", "a dog"), ("B:A dog", "a dog"), ("A)the man", "a man"), ("A.M. or so", ""), ("B.B.C.", ""),
        ("(A) is wrong", ""), ("B) is incorrect, C is right", ""), ("B. is not right", ""), ("[B] isn't right", ""),
        ("A) a man", "a man"), ("A", "a man"), ("A.", "a man"), ("A, of course", "a man"),
    ],
)  # fmt: skip
def test_which_option_an_answer_names(said: str, meant: str) -> None:
    assert parse_letter(said, LETTERS) == meant


@pytest.mark.parametrize("said", ["B is not moving", "(B) is not moving", "B. is not moving.", "is not moving"])
def test_an_option_that_begins_as_a_denial_is_still_its_letters_own(said: str) -> None:
    assert parse_letter(said, ("is moving", "is not moving")) == "is not moving"


@pytest.mark.parametrize("spec", FAMILIES.values(), ids=FAMILIES)
def test_choice_scores_are_the_letters_shares_of_the_first_token(spec: Spec) -> None:
    made, tokenizer = captioner(name="none", spec=spec), prompter(spec).tokenizer
    frames, question = pixels(spec, 3, 1), "Which one is it?"
    ((answer,),) = made.annotate([Clip(frames, (Ask("q", "choice", question, LETTERS),))])
    assert isinstance(answer, Answer)
    suffix = prompter(spec).suffix("qa", choice_text(question, LETTERS))
    one = oracles.lane(spec, prompter(spec).prefix, frames, suffix)
    with torch.inference_mode():
        logits_V = eager(spec)(inputs_embeds=one.embeds_TD[None]).logits[0, -1].double()
    shares = []
    for letter in "ABCD":
        forms = {tokenizer.encode(form, add_special_tokens=False)[-1] for form in (letter, " " + letter)}
        shares.append(sum(float(logits_V.exp()[i]) for i in forms))
    assert answer.choice_scores == pytest.approx([s / sum(shares) for s in shares], abs=1e-5)
    assert sum(answer.choice_scores) == pytest.approx(1)
    assert answer.choice == parse_letter(answer.text, LETTERS)


def test_only_choices_have_scores() -> None:
    ((answer,),) = captioner().annotate([Clip(pixels(SPEC, 2, 1), (ask("x"),))])
    assert isinstance(answer, Answer) and answer.choice == "" and answer.choice_scores == ()


# Stops and counts.


def test_a_stop_token_ends_a_text_and_is_not_in_it() -> None:
    made = captioner(name="none")
    clips = [Clip(pixels(SPEC, n, n), (ask("x"), ask("y", "And who is walking there?"))) for n in (2, 4)]
    made._stop = frozenset()
    free = [answers(some) for some in made.annotate(clips)]
    assert all(a.finish_reason == "length" and a.num_new_tokens == 8 for some in free for a in some)
    said = first_tokens(made, clips[0])
    made._stop = frozenset({said[2]})
    stopped = [answers(some) for some in made.annotate(clips)]
    first = stopped[0][0]
    at = said.index(said[2])
    assert first.finish_reason == "stop" and first.num_new_tokens == at + 1
    assert first.text == prompter(SPEC).tokenizer.decode(said[:at]).strip()  # though the tokenizer marks it by nothing
    assert first.bill.executed.generate < free[0][0].bill.executed.generate
    for some, all_of_it in zip(stopped, free, strict=True):  # the others go on as if it were still there
        for a, b in zip(some, all_of_it, strict=True):
            assert b.text.startswith(a.text.removesuffix("\N{REPLACEMENT CHARACTER}"))


@pytest.mark.parametrize(
    ("file", "config"),
    [
        ({"eos_token_id": [5, 6]}, {}),
        (None, {"text_config": {"eos_token_id": 7}}),
        (None, {"text_config": {"eos_token_id": [8, 9]}}),
        (None, {"eos_token_id": 10}),
        ({"do_sample": False}, {"text_config": {"eos_token_id": 7}}),
        (None, {}),
    ],
)
def test_generation_stops_where_transformers_would(
    file: dict[str, Any] | None, config: dict[str, Any], tmp_path: Path
) -> None:
    place = Path(shutil.copytree(folder(SPEC), tmp_path / "model"))
    written = json.loads((place / "config.json").read_text())
    text = {**written["text_config"], **config.get("text_config", {})}
    (place / "config.json").write_text(json.dumps({**written, **config, "text_config": text}))
    (place / "generation_config.json").unlink()
    if file is not None:
        (place / "generation_config.json").write_text(json.dumps(file))
    theirs = AutoModelForImageTextToText.from_pretrained(place).generation_config.eos_token_id
    stops = Captioner(resolve(str(place)), Settings(make("none"), WHOLE, 1, device="cpu"))._stop
    own = prompter(SPEC).tokenizer.eos_token_id  # transformers knows no tokenizer, and would never stop
    assert stops == set([theirs] if isinstance(theirs, int) else theirs or [own])


def first_tokens(made: Captioner, clip: Clip) -> list[int]:
    """What the model says to a clip's first prompt, by transformers' own generate."""
    one = oracles.lane(SPEC, prompter(SPEC).prefix, clip.pixels_FHWC, prompter(SPEC).suffix("qa", clip.asks[0].text))
    out = eager(SPEC).generate(inputs_embeds=one.embeds_TD[None], max_new_tokens=8, do_sample=False, eos_token_id=None)
    return out[0].tolist()


def test_counts_and_bills_of_a_clip_add_up() -> None:
    made = captioner(expected_new_tokens=5)
    clip = Clip(pixels(SPEC, 5, 1), (ask("x"), ask("y", "And who is walking there?"), Ask("z", "caption", "Tell me")))
    (some,) = made.annotate([clip])
    rows = answers(some)
    for row, given in zip(rows, clip.asks, strict=True):
        assert row.num_prompt_tokens == len(prompter(SPEC).prefix) + len(prompter(SPEC).suffix("qa", given.text))
        assert row.num_visual_tokens == 5 * SPEC.tokens_per_frame
        assert row.num_kept_tokens == row.num_visual_tokens * 300_000 // WHOLE
        assert row.bill.executed.llm == row.bill.planned.llm and row.bill.executed.vision == row.bill.planned.vision
        assert row.relevance_source == "attention" and row.keep == 300_000 and row.model_s > 0
    shape = made.shape
    clip_shape = flops.ClipShape(5, shape.side, shape.side, len(prompter(SPEC).prefix), shape.trailer,
                                 tuple(len(prompter(SPEC).suffix("qa", a.text)) for a in clip.asks))  # fmt: skip
    whole = flops.vanilla(shape, clip_shape, (5, 5, 5))
    assert added(row.bill.vanilla for row in rows) == whole
    planned = flops.price(shape, clip_shape, pruning("adatp").schedule(shape, clip_shape, 300_000), (5, 5, 5))
    assert added(row.bill.planned for row in rows) == planned


@pytest.mark.parametrize("spec", FAMILIES.values(), ids=FAMILIES)
def test_what_largest_scores_would_have_kept_is_counted_as_the_method_looks(spec: Spec) -> None:
    """`segattn` keeps the largest of each segment: those of a short one are larger, and mean nothing elsewhere."""
    given = Settings(pruning("segattn", {"segment": 3}), 600_000, 3, device="cpu", selections=1.0)
    ((answer,),) = Captioner(checkpoint(spec), given).annotate([Clip(pixels(spec, 7, 1), (ask("a"),))])
    assert isinstance(answer, Answer) and answer.selections
    for row in answer.selections:
        assert len(set(row["segment"])) > 1 and len(row["kept"]) < len(row["score"]) == len(row["candidates"])
        assert row["plain_by_frame"] == row["kept_by_frame"] and row["plain_by_place"] == row["kept_by_place"]


# Rows that fail, between rows that don't.


def test_a_bad_prompt_fails_alone() -> None:
    made = captioner()
    good, empty = ask("g"), ask("e", "  \n ")
    long = ask("l", "what is it " * MAX_PROMPT_TOKENS)
    frames = pixels(SPEC, 2, 1)
    first, second, third = made.annotate([Clip(frames, (empty, good, long)), Clip(frames, (empty,)), Clip(frames, ())])
    assert [isinstance(a, Answer) for a in first] == [False, True, False] and third == []
    for failed in (first[0], first[2], second[0]):
        assert isinstance(failed, RowError) and failed.error_class == "bad_prompt" and not failed.retryable
    assert isinstance(first[1], Answer)
    ((alone,),) = made.annotate([Clip(pixels(SPEC, 2, 1), (good,))])
    assert isinstance(alone, Answer) and replace(alone, model_s=0.0) == replace(first[1], model_s=0.0)


def test_a_prompt_beside_which_two_stages_have_no_room_fails_alone() -> None:
    """It has fewer tokens than are taken, and none of its neighbours is what it would be without it."""
    made = Captioner(resolve("embedded:tiny-image"), Settings(make("mlb"), 300_000, 4, device="cpu"))
    frames = np.random.default_rng(0).integers(0, 256, (4, 72, 72, 3), dtype=np.uint8)
    good, long = ask("g"), ask("l", "What colour is it? " * 800)
    ((failed, answer),) = made.annotate([Clip(frames, (long, good))])
    assert isinstance(failed, RowError) and failed.error_class == "bad_prompt" and "no room" in failed.message
    ((alone,),) = made.annotate([Clip(frames, (good,))])
    assert isinstance(answer, Answer) and replace(answer, model_s=0.0) == replace(alone, model_s=0.0)


def saying(token: int) -> Captioner:
    """One whose model says the same token for ever."""
    made = captioner(name="none")
    head = torch.nn.Linear(made.shape.decoder.hidden, made.shape.decoder.vocab)
    torch.nn.init.zeros_(head.weight)
    head.bias.data = torch.nn.functional.one_hot(torch.tensor(token), made.shape.decoder.vocab).float()
    made._decoder = replace(made._decoder, head=head)
    return made


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_is_not_a_number_is_no_answer_and_its_neighbours_get_theirs(temperature: float) -> None:
    made, frames = captioner(temperature, name="none"), pixels(SPEC, 2, 1)
    made._decoder = replace(made._decoder, head=copy.deepcopy(made._decoder.head))  # which may share the embedding's
    good, poison = ask("g"), ask("p", "quite another question")
    ((expected,),) = made.annotate([Clip(frames, (good,))])
    shared = {*made._prompter.prefix, *made._prompter.suffix("qa", good.text)}
    foreign = set(made._prompter.suffix("qa", poison.text)) - shared
    assert foreign and isinstance(expected, Answer)
    made._decoder.embedding.weight[list(foreign)] = torch.nan
    ((answer, failed),) = made.annotate([Clip(frames, (good, poison))])
    assert isinstance(failed, RowError) and failed.error_class == "model_error" and not failed.retryable
    assert isinstance(answer, Answer) and answer.text == expected.text


def test_what_was_spent_on_an_answer_that_failed_is_told_apart() -> None:
    """With what the other rows say, it is all that ran."""
    made, clip = captioner(name="none"), Clip(pixels(SPEC, 2, 1), (ask("g"), ask("p", "quite another question")))
    made._stop = frozenset()
    both = answers(made.annotate([clip])[0])
    assert made.without_result == 0
    head, calls = made._decoder.head, itertools.count()

    def broken_once(hidden_BD: torch.Tensor) -> torch.Tensor:
        logits_BV: torch.Tensor = head(hidden_BD)
        if next(calls) == 0:
            logits_BV[1] = torch.nan
        return logits_BV

    made._decoder = replace(made._decoder, head=broken_once)  # type: ignore[arg-type]
    ((answer, failed),) = made.annotate([clip])
    assert isinstance(answer, Answer) and answer.bill == both[0].bill and isinstance(failed, RowError)
    first_token = flops.head(made.shape.decoder, 1)
    assert made.without_result == replace(both[1].bill.executed, generate=first_token).total


def test_what_a_batch_had_generated_that_did_not_fit_is_told_too() -> None:
    """As much as answers cost that end where it broke off."""
    clips = [Clip(pixels(SPEC, 2, number), (ask(str(number)),)) for number in range(2)]
    short = captioner(name="none", max_new_tokens=3)
    short._stop = frozenset()
    until_then = sum(answer.bill.executed.total for (answer,) in map(answers, short.annotate(clips)))
    made = captioner(name="none")
    made._stop = frozenset()
    head, calls = made._decoder.head, itertools.count()

    def full_once(hidden_BD: torch.Tensor) -> torch.Tensor:
        if next(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        logits_BV: torch.Tensor = head(hidden_BD)
        return logits_BV

    made._decoder = replace(made._decoder, head=full_once)  # type: ignore[arg-type]
    assert all(map(answers, made.annotate(clips)))
    assert made.without_result == until_then


def test_a_model_that_says_nothing_or_never_stops_is_told_by_its_rows() -> None:
    clip = Clip(pixels(SPEC, 2, 1), (ask("x"),))
    (stop,) = captioner()._stop
    ((empty,),) = saying(stop).annotate([clip])
    assert isinstance(empty, Answer) and (empty.text, empty.finish_reason, empty.num_new_tokens) == ("", "stop", 1)
    tokenizer = prompter(SPEC).tokenizer
    half = next(n for n in range(len(tokenizer)) if "\N{REPLACEMENT CHARACTER}" in tokenizer.decode([n]))
    for token in (tokenizer.encode("ball", add_special_tokens=False)[0], half):
        ((endless,),) = saying(token).annotate([clip])
        assert isinstance(endless, Answer) and (endless.finish_reason, endless.num_new_tokens) == ("length", 8)
        assert endless.text and endless.text.encode()  # also where its tokens are halves of a character


def test_nothing_to_do_is_nothing() -> None:
    assert captioner().annotate([]) == []


def test_a_clip_is_measured_by_what_its_frames_show() -> None:
    made, still = captioner(), pixels(SPEC, 1, 1).repeat(4, axis=0)

    def measured(frames: np.ndarray) -> float:
        found = made.measure(Clip(frames, (ask("x", ""), ask("y"))))
        assert found and (found[0].frames, len(found[0].suffixes)) == (len(frames), 1)  # the empty prompt is not asked
        return found[1]

    assert measured(still) == pytest.approx(1, abs=1e-5)
    assert measured(still[:1]) == 0
    assert 0 <= measured(pixels(SPEC, 6, 2)) < 1
    assert made.measure(Clip(still, (ask("x", ""),))) is None
