"""Lessons in text, before the clips and among them: here a model of this size learns to look things up, or nowhere.

recall      facts in the world's own sentences, then the same facts twice more in other orders: what is told again can
            only be found by its colour and its shape together
questions   what is asked of clips, asked of their captions instead

Questions alone do not teach it: they hold a few words a clip that hang on a look-up, and a fact told again is one
look-up in six words.

Legend: B rows, L tokens in the longest one, A places where a token is asked for, D hidden width.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlavaOnevisionForConditionalGeneration

from mlb_batch.tiny.questions import act_sentence
from mlb_batch.tiny.train.answers import Sample, accuracy, answer_loss
from mlb_batch.tiny.train.lessons import exam_talk, lesson_talk
from mlb_batch.tiny.train.loop import Task
from mlb_batch.tiny.train.packing import Dialogue, Packer
from mlb_batch.tiny.train.pixels import half
from mlb_batch.tiny.truth import Act
from mlb_batch.tiny.words import COLOURS, DIRECTIONS, PLACES, SHAPES
from mlb_batch.tiny.world import HELD_OUT_FROM, Clip, make_clip

RECALL_STEPS, QUESTION_STEPS = 1000, 2000
_FACTS = (2, 4, 6)
_FACTS_A_BATCH, _LEAST_ROWS = 256, 24
_CLIPS, _MOST_ACTS, _MOST_FLASHES = 32, 4, 3
_RECALL_SHARE = 0.35  # of the steps that read, so that what is known stays
_PLAIN_SHARE = 0.25  # of the steps that ask: about captions of two sentences


def text_tasks(student: nn.Module, reader: Reader, seed: int) -> tuple[Task, Task]:
    """Recall alone, then both; `student` holds the reader's model, of which the language side learns."""
    reader.model.model.vision_tower.requires_grad_(False)
    reader.model.model.multi_modal_projector.requires_grad_(False)

    def recall(step: int) -> Tensor:
        most = next(facts for until, facts in zip((100, 400, RECALL_STEPS), _FACTS, strict=True) if step < until)
        return reader.recall_loss(np.random.default_rng((seed, step, 0)), most)

    def both(step: int) -> Tensor:
        return reader.loss(np.random.default_rng((seed, step, 1)))

    return (
        Task("video-recall", student, recall, lambda step: reader.recalled(), RECALL_STEPS, 1e-3),
        Task("video-reading", student, both, lambda step: reader.measure(), QUESTION_STEPS, 6e-4),
    )


class Reader:
    """Asks a model's language side about texts."""

    def __init__(self, model: LlavaOnevisionForConditionalGeneration, packer: Packer) -> None:
        self.model, self.packer = model, packer
        self._ids = lru_cache(maxsize=None)(self._tokens)

    def _tokens(self, text: str) -> tuple[int, ...]:
        return tuple(self.packer.tokenizer(text, add_special_tokens=False).input_ids)

    def loss(self, rng: np.random.Generator) -> Tensor:
        return self.recall_loss(rng, _FACTS[-1]) if rng.random() < _RECALL_SHARE else self.question_loss(rng)

    def recall_loss(self, rng: np.random.Generator, most: int) -> Tensor:
        """Of every word that is told again, its first ones too: those are a guess, and cost little."""
        with half(self.model):
            logits_AV, target_A = self._recalled(rng, int(rng.integers(_FACTS[0], most + 1)))
            return functional.cross_entropy(logits_AV.float(), target_A)

    def question_loss(self, rng: np.random.Generator) -> Tensor:
        acts = 2 if rng.random() < _PLAIN_SHARE else _MOST_ACTS
        clips = [_clip(seed, acts) for seed in rng.integers(0, HELD_OUT_FROM, _CLIPS).tolist()]
        packed, nothing, _ = self._asked(clips, [lesson_talk(clip, rng) for clip in clips])
        with half(self.model):
            return answer_loss(self.model, self.packer.media_id, packed, nothing)

    @torch.no_grad()
    def measure(self, clips: int = 48) -> dict[str, float]:
        made = [_clip(seed, _MOST_ACTS) for seed in range(HELD_OUT_FROM, HELD_OUT_FROM + clips)]
        with half(self.model):
            exam = [self._asked(made, [exam_talk(clip) for clip in made])]
            figures = accuracy(self.model, self.packer.media_id, exam, lambda talk: talk.kind)
        return figures | self.recalled()

    @torch.no_grad()
    def recalled(self) -> dict[str, float]:
        with half(self.model):
            return {f"looked up among {count}": self._found(count) for count in _FACTS}

    def _found(self, count: int) -> float:
        """Share of right directions among facts told again."""
        logits_AV, target_A = self._recalled(np.random.default_rng((HELD_OUT_FROM, count)), count)
        directions = torch.tensor([self._ids(f" {word}")[0] for word in DIRECTIONS], device=target_A.device)
        looked_up_A = torch.isin(target_A, directions)
        right_A = logits_AV[looked_up_A].argmax(-1) == target_A[looked_up_A]
        return round(right_A.float().mean().item(), 4)

    def _asked(self, clips: list[Clip], talks: list[list[Dialogue]]) -> Sample:
        """Captions in the place of clips, and what is asked of them: no caption says when."""
        asked = [[talk for talk in some if talk.kind != "caption" and "When" not in talk.prompt] for some in talks]
        packed = self.packer.pack_read([clip.caption for clip in clips], asked)
        device, width = self.model.device, self.model.config.get_text_config().hidden_size
        return packed.to(device), torch.zeros(0, width, device=device), asked

    def _recalled(self, rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
        """Logits and targets at every place behind the first telling."""
        rows = [self._row(rng, count) for _ in range(max(_LEAST_ROWS, _FACTS_A_BATCH // count))]
        length = max(len(ids) for ids, _ in rows)
        ids_BL, label_BL = torch.zeros(len(rows), length, dtype=torch.long), torch.full((len(rows), length), -100)
        for index, (ids, told) in enumerate(rows):
            ids_BL[index, : len(ids)] = torch.tensor(ids)
            label_BL[index, told : len(ids) - 1] = torch.tensor(ids[told + 1 :])
        ids_BL, label_BL = ids_BL.to(self.model.device), label_BL.to(self.model.device)
        language = self.model.model.language_model
        language.set_attn_implementation("sdpa")
        embedded_BLD = self.model.get_input_embeddings()(ids_BL)
        hidden_BLD = language(inputs_embeds=embedded_BLD, use_cache=False).last_hidden_state
        asked_BL = label_BL != -100
        return self.model.lm_head(hidden_BLD[asked_BL]), label_BL[asked_BL]

    def _row(self, rng: np.random.Generator, count: int) -> tuple[list[int], int]:
        """Facts told three times, and where the second time begins."""
        facts = [self._ids(f" {sentence}") for sentence in _facts(rng, count)]
        orders = [range(count), rng.permutation(count), rng.permutation(count)]
        ids = [token for order in orders for index in order for token in facts[index]]
        return ids, sum(map(len, facts))


def _facts(rng: np.random.Generator, count: int) -> list[str]:
    """About names that share their colours and shapes: neither alone says which one is meant."""
    several = max(2, -(-count // 2))
    colours = rng.choice(COLOURS, several, replace=False)
    shapes = rng.choice(SHAPES, several, replace=False)
    names = [(str(colour), str(shape)) for colour in colours for shape in shapes]
    return [_fact(rng, *names[index]) for index in rng.permutation(len(names))[:count]]


def _fact(rng: np.random.Generator, colour: str, shape: str) -> str:
    direction, place = str(rng.choice(DIRECTIONS)), str(rng.choice(PLACES))
    return act_sentence(
        Act(colour, shape, direction, None, 0, 1) if rng.random() < 0.5 else Act(colour, shape, None, place, 0, 1)
    )


def _clip(seed: int, acts: int) -> Clip:
    """Its frames are not looked at, so they are small."""
    return make_clip(seed, 16, size=8, max_acts=acts, max_flashes=min(acts, _MOST_FLASHES))
