"""Where text looks: the attention that a prompt's last token pays to each visual token, in every layer, unpruned.

Read as the engine reads it for its selections: the fast kernel runs, and the weights of the one row that is wanted are
computed beside it.

Shapes: F frames, H x W pixels, C colours, L layers, N visual tokens, K of one frame, T packed tokens, P text tokens of
the prefix, D hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mlb_batch.cost.schedule import WHOLE
from mlb_batch.prune import make
from mlb_batch.vlm.checkpoint import Checkpoint
from mlb_batch.vlm.inputs import ClipInput
from mlb_batch.vlm.layers import pack, plant, run_layer
from mlb_batch.vlm.load import load, pick_device, pick_dtype
from mlb_batch.vlm.meter import Meter
from mlb_batch.vlm.prepare import Preparer, Source
from mlb_batch.vlm.prompts import Prompter
from mlb_batch.vlm.score import mean_heads, mean_of, tap, visual_attention
from mlb_batch.vlm.trees import Forest
from mlb_batch.vlm.values import Settings


@dataclass(frozen=True, eq=False)
class Looked:
    """What the last token of one prompt paid to a clip, mean over heads; the rest of each row's 1 went to text."""

    frames: int
    rows: int
    cols: int
    paid_LN: NDArray[np.float32]

    @property
    def by_frame_LF(self) -> NDArray[np.float32]:
        """Share of the attention to visual tokens that each frame gets, layer by layer."""
        paid_LFK = self.paid_LN.reshape(len(self.paid_LN), self.frames, -1)
        return np.asarray(paid_LFK.sum(2) / self.paid_LN.sum(1, keepdims=True))

    @property
    def by_place_LK(self) -> NDArray[np.float32]:
        """The same by position in the frame, whatever the frame."""
        paid_LFK = self.paid_LN.reshape(len(self.paid_LN), self.frames, -1)
        return np.asarray(paid_LFK.sum(1) / self.paid_LN.sum(1, keepdims=True))


class Gaze:
    """A frozen model, looked at while it looks."""

    def __init__(self, checkpoint: Checkpoint, device: str = "auto", dtype: str = "auto") -> None:
        where = pick_device(device)
        model = load(checkpoint, where, pick_dtype(dtype, where))
        settings = Settings(make("none"), WHOLE, max_new_tokens=1, device=device, dtype=dtype)
        self._prompter = Prompter(checkpoint)
        self._preparer = Preparer.of(model, checkpoint, self._prompter.prefix, settings)
        self._decoder = self._preparer.decoder

    @torch.inference_mode()
    def look(self, pixels_FHWC: NDArray[np.uint8], text: str, choices: tuple[str, ...] = ()) -> Looked:
        """Raises RowError where the prompt can't be asked."""
        suffix = self._prompter.suffix("choice" if choices else "qa", text, choices)
        meter = Meter(self._decoder.shape)
        (given,) = self._preparer.inputs([Source("", pixels_FHWC, (text,), (suffix,))], [meter])
        shape = given.shape
        return Looked(shape.frames, shape.rows, shape.cols, self._paid(given, meter))

    def _paid(self, given: ClipInput, meter: Meter) -> NDArray[np.float32]:
        forest, hidden_TD = Forest([plant(0, given)]), pack(given, given.visual_ND)
        rotations = forest.rotations([self._decoder.rope], hidden_TD.dtype)
        paid = []
        for index in range(len(self._decoder.layers)):
            tap(forest, "last", forest.trees)
            hidden_TD, _ = run_layer(self._decoder, index, hidden_TD, forest, rotations, [meter], "prefill")
            attention = visual_attention(forest, "last", forest.trees, self._decoder.scale(index), [meter])
            paid_N = mean_heads(mean_of(attention, 0, (0,)))
            assert paid_N is not None
            paid.append(paid_N)
        return np.stack(paid)
