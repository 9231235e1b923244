"""transformers' own `generate` on the same weights and clips, with its SDPA attention: what is measured against.

LLaVA-OneVision takes frames as its video input. LLaVA-NeXT would cut every frame into tiles; a frame here is its base
view alone, so its visual tokens are made with transformers' own tower and projector and given as embeddings.

Shapes: B clips, F frames, T tokens, N visual tokens, D hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlb_batch.bench.bed import Bed
from mlb_batch.bench.rounds import Contender
from mlb_batch.vlm.preprocess import FrameRecipe, frame_recipe
from mlb_batch.vlm.prompts import Prompter
from mlb_batch.vlm.vision import normalise


@dataclass(frozen=True)
class Yardstick:
    model: Any
    recipe: FrameRecipe
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def of(cls, bed: Bed, text: str) -> Yardstick:
        prompter = Prompter(bed.checkpoint)
        suffix = prompter.suffix("caption", text)
        return cls(bed.twin, frame_recipe(bed.checkpoint), prompter.prefix, suffix, bed.device, bed.dtype)

    @property
    def _video(self) -> bool:
        return hasattr(self.model.config, "video_token_id")

    @torch.inference_mode()
    def see(self, clips: Sequence[np.ndarray]) -> list[Tensor]:
        """The visual tokens of each clip, N x D, with what closes them."""
        if self._video:
            found = self.model.get_video_features(self._pixels(clips)).pooler_output
            return [_with_newline(self.model, one) for one in found]
        per_clip = [len(clip) for clip in clips]
        tower = self.model.model.vision_tower(self._pixels(clips).flatten(0, 1), output_hidden_states=True)
        chosen = tower.hidden_states[self.model.config.vision_feature_layer][:, 1:]
        return [one.flatten(0, 1) for one in self.model.model.multi_modal_projector(chosen).split(per_clip)]

    @torch.inference_mode()
    def annotate(self, clips: Sequence[np.ndarray], new_tokens: int) -> Tensor:
        """From frames to tokens, by transformers' own way."""
        if not self._video:
            return self.prompted(self.embedded(self.see(clips)), new_tokens)
        visual = (self.model.config.video_token_id,) * self._visual_tokens(len(clips[0]))
        ids_BT = torch.tensor([[*self.prefix, *visual, *self.suffix]] * len(clips), device=self.device)
        return self._generated(new_tokens, input_ids=ids_BT, pixel_values_videos=self._pixels(clips),
                               attention_mask=torch.ones_like(ids_BT))  # fmt: skip

    @torch.inference_mode()
    def embedded(self, visual: Sequence[Tensor]) -> Tensor:
        """Prompts as embeddings, B x T x D, from visual tokens."""
        embed = self.model.get_input_embeddings()
        before, behind = (embed(torch.tensor(ids, device=self.device)) for ids in (self.prefix, self.suffix))
        return torch.stack([torch.cat([before, visual_ND, behind]) for visual_ND in visual])

    @torch.inference_mode()
    def prompted(self, embeds_BTD: Tensor, new_tokens: int) -> Tensor:
        """The language model alone."""
        return self._generated(new_tokens, inputs_embeds=embeds_BTD, attention_mask=_all_seen(embeds_BTD))

    @torch.inference_mode()
    def going_on(self, clips: Sequence[np.ndarray], new_tokens: int) -> Contender:
        """What generates from the first token on, each time anew, on a cache that is filled here."""
        embeds_BTD = self.embedded(self.see(clips))
        length = embeds_BTD.shape[1]
        begun: Any = self.model.generate(
            inputs_embeds=embeds_BTD, attention_mask=_all_seen(embeds_BTD), max_new_tokens=2, do_sample=False,
            return_dict_in_generate=True,
        )  # fmt: skip
        cache, ids_BT = begun.past_key_values, torch.zeros(len(clips), length + 1, dtype=torch.long).to(self.device)
        ids_BT[:, -1] = begun.sequences[:, 0]  # those before it are in the cache, and nobody looks at them

        def go_on() -> Tensor:
            cache.crop(length - cache.get_seq_length())  # by as many as an earlier turn has added
            return self._generated(new_tokens - 1, input_ids=ids_BT, past_key_values=cache,
                                   attention_mask=torch.ones_like(ids_BT))  # fmt: skip

        return go_on

    def _generated(self, new_tokens: int, **inputs: Any) -> Tensor:
        out: Tensor = self.model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False, use_cache=True)
        return out

    def _pixels(self, clips: Sequence[np.ndarray]) -> Tensor:
        flat = normalise(np.concatenate(clips), self.recipe, self.device, self.dtype)
        return flat.unflatten(0, (len(clips), -1))

    def _visual_tokens(self, frames: int) -> int:
        vision = self.model.config.vision_config
        side = -(-(vision.image_size // vision.patch_size) // 2)
        return frames * side**2 + 1


def _all_seen(embeds_BTD: Tensor) -> Tensor:
    return torch.ones(embeds_BTD.shape[:2], dtype=torch.long, device=embeds_BTD.device)


def _with_newline(model: Any, tokens_ND: Tensor) -> Tensor:
    """Older transformers add the closing newline later, to the sequence."""
    newline_1D = model.model.image_newline[None].to(tokens_ND.dtype)
    return tokens_ND if torch.equal(tokens_ND[-1:], newline_1D) else torch.cat([tokens_ND, newline_1D])
