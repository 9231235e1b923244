"""Attention of questions that branch off one clip: each sees the clip and itself, never another question.

A mask over the whole row would have every question look past all others. Here what a token sees is two parts, the
prefix and its own branch, each one kernel call without a mask; their softmaxes are put together by their sums. Going
back, each part gets the whole's output and sum, from which the kernel finds that part's share of the gradient.

Legend: B rows of L tokens, P of them the prefix and T after it; N branches of a row, M of all rows, S places of a
branch; H heads, E head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
_NOTHING = 1e4  # as the log of a softmax's sum, everything beside it is nothing; so is what lies this far below


@dataclass(frozen=True)
class Branches:
    """How the rows of a batch part: `prefix` tokens first, then branch after branch, then padding."""

    prefix: int
    bias_B11P: Tensor | None  # what hides the places that a shorter prefix leaves empty
    token_BNS: Tensor  # which token of the whole batch stands at a branch's place; any, where it is padded
    padded_BNS: Tensor
    place_BT: Tensor  # the other way round: the place of each token behind a prefix, counted over the whole batch
    extra_BT: Tensor  # tokens that only fill up a row

    def apart(self, x_BHLE: Tensor) -> Tensor:
        """Every branch of every row for itself: (B N) H S E."""
        _, heads, _, width = x_BHLE.shape
        x = _rows(x_BHLE).index_select(0, self.token_BNS.flatten())
        return x.view(-1, self.token_BNS.shape[2], heads, width).transpose(1, 2)

    def joined(self, x_MHSE: Tensor) -> Tensor:
        """The inverse of `apart`, without the prefix: B H T E."""
        _, heads, _, width = x_MHSE.shape
        x = _rows(x_MHSE).index_select(0, self.place_BT.flatten())
        return x.view(*self.place_BT.shape, heads, width).transpose(1, 2)


def branches_of(branch_BL: Tensor) -> Branches:
    """`branch_BL`: the branch that a token belongs to; -1 in the prefix, -2 where a prefix or a row is padded."""
    rows_, length = branch_BL.shape
    prefix_B = (branch_BL == -1).sum(1)
    prefix = int(prefix_B.max())
    branch_BT = branch_BL[:, prefix:]
    own = [[(row == index).nonzero()[:, 0] for index in range(int(row.max()) + 1)] for row in branch_BT]
    shape = (rows_, max(map(len, own)), max(len(tokens) for row in own for tokens in row))
    token_BNS, padded_BNS = torch.zeros(shape, dtype=torch.long), torch.ones(shape, dtype=torch.bool)
    place_BT = torch.zeros_like(branch_BT)
    for row, branches in enumerate(own):
        for index, tokens in enumerate(branches):
            token_BNS[row, index, : len(tokens)] = row * length + prefix + tokens
            padded_BNS[row, index, : len(tokens)] = False
            place_BT[row, tokens] = (row * shape[1] + index) * shape[2] + torch.arange(len(tokens))
    empty_BP = torch.arange(prefix) >= prefix_B[:, None]
    bias_B11P = torch.zeros(empty_BP.shape).masked_fill(empty_BP, -_NOTHING)[:, None, None]
    return Branches(prefix, bias_B11P if bool(empty_BP.any()) else None, token_BNS, padded_BNS, place_BT, branch_BT < 0)


def branched_attention(
    module: nn.Module,
    query_BHLE: Tensor,
    key_BHLE: Tensor,
    value_BHLE: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    branches: Branches,
    **_: object,
) -> tuple[Tensor, None]:
    """In float32, whose backward is the faster one on CPUs."""
    groups = query_BHLE.shape[1] // key_BHLE.shape[1]
    key, value = (x.float().repeat_interleave(groups, 1) for x in (key_BHLE, value_BHLE))
    out_BHLE: Tensor = _Branched.apply(query_BHLE.float(), key, value, branches, scaling)
    return out_BHLE.transpose(1, 2), None


AttentionInterface.register("branched", branched_attention)


class _Branched(torch.autograd.Function):
    """The prefix looks at itself; what follows looks at the prefix (far) and at its own branch (near)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, branches: Branches, scale: float) -> Tensor:
        before = [x_BHLE[:, :, : branches.prefix] for x_BHLE in (query, key, value)]
        shared, shared_sum = _forward(*before, is_causal=True, scale=scale)
        after = query[:, :, branches.prefix :]
        far, far_sum = _forward(after, *before[1:], attn_mask=branches.bias_B11P, scale=scale)
        near, near_sum = _forward(*map(branches.apart, (query, key, value)), is_causal=True, scale=scale)
        near, near_sum = branches.joined(near), branches.joined(near_sum[..., None])[..., 0]
        sum_BHT = torch.logaddexp(far_sum, near_sum)
        far = far * (far_sum - sum_BHT).exp()[..., None] + near * (near_sum - sum_BHT).exp()[..., None]
        out = torch.cat((shared.transpose(1, 2), far.transpose(1, 2)), 1).transpose(1, 2)
        ctx.save_for_backward(query, key, value, out, shared_sum, sum_BHT)
        ctx.branches, ctx.scale = branches, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, shared_sum, sum_BHT = ctx.saved_tensors
        branches, scale, p = ctx.branches, ctx.scale, ctx.branches.prefix
        before = key[:, :, :p], value[:, :, :p]
        shared = _backward(
            grads[0][:, :, :p], query[:, :, :p], *before, out[:, :, :p], shared_sum, 0.0, True, scale=scale
        )
        far = _backward(
            grads[0][:, :, p:], query[:, :, p:], *before, out[:, :, p:], sum_BHT, 0.0, False,
            attn_mask=branches.bias_B11P, scale=scale,
        )  # fmt: skip
        near = _near_backward(grads[0], query, key, value, out, shared_sum, sum_BHT, branches, scale)
        at_query = torch.cat((shared[0], far[0] + near[0]), 2)
        return at_query, *(torch.cat((shared[i] + far[i], near[i]), 2) for i in (1, 2)), None, None


def _near_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, shared_sum: Tensor, sum_BHT: Tensor,
    branches: Branches, scale: float,
) -> list[Tensor]:  # fmt: skip
    own_grad, *own, own_out = map(branches.apart, (grad, query, key, value, out))
    own_sum = branches.apart(torch.cat((shared_sum, sum_BHT), 2)[..., None])[..., 0]
    own_sum = own_sum.masked_fill(branches.padded_BNS.flatten(0, 1)[:, None], _NOTHING)
    near = _backward(own_grad, *own, own_out, own_sum, 0.0, True, scale=scale)
    return [branches.joined(x).masked_fill(branches.extra_BT[:, None, :, None], 0) for x in near]


def _rows(x_BHLE: Tensor) -> Tensor:
    """A row a token: in memory it lies so already, and is moved whole."""
    return x_BHLE.transpose(1, 2).reshape(-1, x_BHLE.shape[1] * x_BHLE.shape[3])
