"""nn.MultiheadAttention written out in layers that torch.fx can enter: linear, matmul, softmax, matmul, linear."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class DecomposedAttention(nn.Module):
    """The same function and weights as an nn.MultiheadAttention in eval mode, as separate operations.

    softmax(q·kᵀ/√d + mask)·v over heads (Vaswani et al. 2017). Inputs [N, L, E] with batch_first, else [L, N, E].
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.embed_dim, self.num_heads = attention.embed_dim, attention.num_heads
        self.head_dim, self.batch_first = attention.head_dim, attention.batch_first
        weight, bias = attention.in_proj_weight, attention.in_proj_bias
        self.in_proj = linear_around(weight, bias)
        # Used where query, key and value are different tensors; they share the storage of in_proj.
        biases = (None, None, None) if bias is None else bias.chunk(3)
        self.q_proj, self.k_proj, self.v_proj = (
            linear_around(part, bias_part) for part, bias_part in zip(weight.chunk(3), biases, strict=True)
        )
        self.out_proj = linear_around(attention.out_proj.weight, attention.out_proj.bias)

    @staticmethod
    def obstacle(attention: nn.MultiheadAttention) -> str | None:
        """Why an attention can't be written out, or None where it can."""
        if attention.in_proj_weight is None:
            return "key and value have other widths than the query"
        if attention.bias_k is not None or attention.add_zero_attn:
            return "it appends a bias or zeros to key and value"
        return None

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As nn.MultiheadAttention's, for batched inputs. Raises NotImplementedError for masks other than attn_mask."""
        if key_padding_mask is not None or is_causal:
            raise NotImplementedError("attention with key_padding_mask or is_causal is not written out")
        projected = self._project(query, key, value)
        q, k, v = (self._split_heads(projected[i]) for i in range(3))
        scores = torch.matmul(q, k.transpose(-2, -1)) * (1 / math.sqrt(self.head_dim))
        weights = torch.softmax(self._masked(scores, attn_mask), dim=-1)
        out = self.out_proj(self._join_heads(torch.matmul(weights, v)))
        if not need_weights:
            return out, None
        return out, weights.mean(dim=1) if average_attn_weights else weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        if query is key and key is value:
            joint = self.in_proj(query)
            e = self.embed_dim
            return joint[..., :e], joint[..., e : 2 * e], joint[..., 2 * e :]
        return self.q_proj(query), self.k_proj(key), self.v_proj(value)

    def _masked(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        """Scores [N, heads, L, S] under a mask [L, S] or [N·heads, L, S], to add or, if bool, true where hidden.

        What is hidden by −inf is filled in, not added: infinity has no place on a grid.
        """
        if mask is None:
            return scores
        mask = mask.unflatten(0, (-1, self.num_heads)) if mask.dim() == 3 else mask
        if mask.dtype == torch.bool:
            return scores.masked_fill(mask, -math.inf)
        hidden = mask == -math.inf
        return (scores + mask.masked_fill(hidden, 0.0)).masked_fill(hidden, -math.inf)

    def _split_heads(self, x: Tensor) -> Tensor:
        """[N, L, E] or [L, N, E] → [N, heads, L, head_dim]."""
        x = x if self.batch_first else x.transpose(0, 1)
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _join_heads(self, x: Tensor) -> Tensor:
        """[N, heads, L, head_dim] → [N, L, E] or [L, N, E]."""
        x = x.transpose(1, 2).flatten(-2)
        return x if self.batch_first else x.transpose(0, 1)


def linear_around(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer around tensors that exist already."""
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight = nn.Parameter(weight.detach())
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach())
    return linear
