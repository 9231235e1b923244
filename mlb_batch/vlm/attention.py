"""Attention over packed sequences without padding, registered with transformers' attention interface.

A layer of ours runs on one packed row of tokens. Which of them may see which is said by the `layout` that travels as
a keyword argument through transformers' own decoder layers; nothing is kept on a module. Without a layout the
function is plain scaled-dot-product attention, so the same loaded model also runs transformers' own `generate`.

Shapes: T packed tokens, H query heads, h key/value heads, d head width, Q query rows, S keys of one sequence,
B sequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mlb_batch.vlm.moving import sent

NAME = "mlb_ragged"
_WIDEST_HEAD = 256
_AMPERE = (8, 0)


class Layout(Protocol):
    """Says who sees whom in one call of a layer."""

    def attend(self, layer: int, q_HTd: Tensor, k_hTd: Tensor, v_hTd: Tensor, scale: float) -> Tensor:
        """Attention output, H x T x d."""
        ...


def ragged_attention(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
                     scaling: float, dropout: float = 0.0, layout: Layout | None = None,
                     **kwargs: Any) -> tuple[Tensor, None]:  # fmt: skip
    if layout is None:
        out: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return out
    attended_HTd = layout.attend(module.layer_idx, query[0], key[0], value[0], scaling)
    return attended_HTd.transpose(0, 1)[None], None


AttentionInterface.register(NAME, ragged_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def attend_last(q_HQd: Tensor, k_hSd: Tensor, v_hSd: Tensor, scale: float) -> Tensor:
    """Causal attention of the last Q tokens of a sequence of S: row i sees the first S - Q + i + 1 keys."""
    rows, keys = q_HQd.shape[1], k_hSd.shape[1]
    if rows == 1:  # the query heads that share a key/value head are its rows: nothing is copied, nothing is masked
        q_hGd = q_HQd.view(len(k_hSd), -1, q_HQd.shape[2])
        return scaled_dot_product_attention(q_hGd[None], k_hSd[None], v_hSd[None], scale=scale)[0].reshape(q_HQd.shape)
    k_HSd, v_HSd = expand_heads(k_hSd, len(q_HQd)), expand_heads(v_hSd, len(q_HQd))
    if rows == keys:
        return scaled_dot_product_attention(q_HQd[None], k_HSd[None], v_HSd[None], is_causal=True, scale=scale)[0]
    mask_QS = torch.ones(rows, keys, dtype=torch.bool, device=q_HQd.device).tril(keys - rows)
    return scaled_dot_product_attention(q_HQd[None], k_HSd[None], v_HSd[None], attn_mask=mask_QS, scale=scale)[0]


def packs(x: Tensor) -> bool:
    """Whether the kernel for packed sequences takes such heads: on a GPU from Ampere on, in half precision."""
    if not x.is_cuda or x.dtype == torch.float32:
        return False
    width = x.shape[-1]
    return width % 8 == 0 and width <= _WIDEST_HEAD and torch.cuda.get_device_capability(x.device) >= _AMPERE


@dataclass(frozen=True)
class Lengths:
    """Of many sequences packed one behind the other: where their rows and their keys begin and end, on the device."""

    rows_B: Tensor
    keys_B: Tensor
    most_rows: int
    most_keys: int

    @classmethod
    def of(cls, rows: list[int], keys: list[int], device: torch.device) -> Lengths:
        ends = [[0, *accumulate(rows)], [0, *accumulate(keys)]]
        ends_2B = sent(torch.tensor(ends, dtype=torch.int32), device)
        return cls(ends_2B[0], ends_2B[1], max(rows), max(keys))


def attend_varlen(q_HTd: Tensor, k_hSd: Tensor, v_hSd: Tensor, lengths: Lengths, scale: float) -> Tensor:
    """Causal attention of many sequences in one CUDA call: the last rows of each against its keys."""
    k_Shd, v_Shd = k_hSd.transpose(0, 1).contiguous(), v_hSd.transpose(0, 1).contiguous()
    return _flash(q_HTd, k_Shd, v_Shd, lengths, scale, is_causal=True, window_size_left=-1, window_size_right=0)


def attend_rooms(q_HBd: Tensor, k_Thd: Tensor, v_Thd: Tensor, lengths: Lengths, seen_B: Tensor,
                 scale: float) -> Tensor:  # fmt: skip
    """One query of each of B sequences, in one CUDA call: it sees the first `seen_B` of the keys in its room."""
    return _flash(q_HBd, k_Thd, v_Thd, lengths, scale, is_causal=False, seqused_k=seen_B)


def _flash(q_HTd: Tensor, k_Shd: Tensor, v_Shd: Tensor, lengths: Lengths, scale: float, **more: Any) -> Tensor:
    """The kernel under torch's varlen_attn, which in 2.11 tells it neither of keys in use nor of shared heads."""
    out_THd, *_ = torch.ops.aten._flash_attention_forward(
        q_HTd.transpose(0, 1).contiguous(), k_Shd, v_Shd, lengths.rows_B, lengths.keys_B, lengths.most_rows,
        lengths.most_keys, dropout_p=0.0, return_debug_mask=False, scale=scale, **more,
    )  # fmt: skip
    assert isinstance(out_THd, Tensor)
    return out_THd.transpose(0, 1)


def expand_heads(x_hSd: Tensor, heads: int) -> Tensor:
    """Key/value heads repeated to the query heads that share them."""
    groups = heads // len(x_hSd)
    return x_hSd if groups == 1 else x_hSd.repeat_interleave(groups, dim=0)


def attention_rows(q_HQd: Tensor, k_hSd: Tensor, scale: float, behind: int = 0) -> Tensor:
    """What the last Q tokens of a sequence but for `behind` of them pay to each of its S keys: fp32 softmax, H x Q x S.

    One product for the rows that are needed: the fast kernel gives no weights, and asking transformers for them
    (output_attentions) silently changes the kernel and its mask.
    """
    heads, rows, _ = q_HQd.shape
    grouped = q_HQd.float().view(len(k_hSd), heads // len(k_hSd), rows, -1)
    logits_HQS = (grouped @ k_hSd.float()[:, None].transpose(-1, -2)).reshape(heads, rows, -1) * scale
    if rows + behind > 1:
        keys = logits_HQS.shape[-1]
        hidden_QS = torch.ones(rows, keys, dtype=torch.bool, device=q_HQd.device).triu(keys - behind - rows + 1)
        logits_HQS = logits_HQS.masked_fill(hidden_QS, -torch.inf)
    return torch.softmax(logits_HQS, dim=-1)
