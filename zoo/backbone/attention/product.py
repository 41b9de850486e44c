"""Scaled dot products with grouped heads, masks and sinks, by the fastest kernel that is exact."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.backbone.mask import Visible


def attend(query: Tensor, key: Tensor, value: Tensor, see: Visible, scale: float, sinks: Tensor | None) -> Tensor:
    """softmax(scale * query key^T) value over the visible keys.

    query [B, H, S, d], key [B, G, L, d] and value [B, G, L, e] with G dividing H, sinks [H] or None
    -> [B, H, S, e]. A sink is one more logit in the softmax, without a value.
    """
    if query.dtype != key.dtype:  # a cache in another precision
        key = key.to(query.dtype)
    heads, groups, length = query.shape[1], key.shape[1], query.shape[2]
    alone = length == 1 and heads != groups
    if alone:  # the heads of a group read the same keys: one product with as many queries
        query = query.reshape(query.shape[0], groups, heads // groups, -1)
        sinks = None if sinks is None else sinks.view(groups, heads // groups)
    else:
        sinks = None if sinks is None else sinks[:, None]
    size = value.shape[-1]
    if size < query.shape[-1] and length > 1:  # fused kernels want values as wide as keys
        value = F.pad(value, (0, query.shape[-1] - size))
    mask = None if see.mask is None else see.mask.to(query.dtype)
    if sinks is None:
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=see.causal, scale=scale,
            enable_gqa=not alone and heads != groups,
        )  # fmt: skip
    elif _has_lse(query, key, value, sinks):
        out = _rescaled(query, key, value, mask, see.causal, scale, sinks)
    else:
        out = _written_out(query, key, value, mask, see.causal, scale, sinks)
    out = out[..., :size]
    return out.reshape(out.shape[0], heads, length, -1) if alone else out


def _has_lse(query: Tensor, key: Tensor, value: Tensor, sinks: Tensor) -> bool:
    """Whether a kernel returns the log-sum-exp, of which no gradient is known."""
    inputs = (query, key, value, sinks)
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in inputs)
    same = query.shape[-1] == value.shape[-1]
    return (
        not wanted and same and query.device.type == "cpu" and query.numel() > 0 and not torch.compiler.is_compiling()
    )


def _rescaled(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float, sinks: Tensor
) -> Tensor:
    """The plain product, of whose softmax the sink takes its share: out * Z / (Z + exp(sink)), Z the sum of exp."""
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, causal, attn_mask=mask, scale=scale
    )
    return out * torch.sigmoid(lse - sinks).unsqueeze(-1).to(out.dtype)


def _written_out(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float, sinks: Tensor
) -> Tensor:
    """All logits at once, with a column for the sink that is dropped behind the softmax."""
    share = query.shape[1] // key.shape[1]
    if share > 1:
        key, value = key.repeat_interleave(share, 1), value.repeat_interleave(share, 1)
    logits = (query * scale) @ key.transpose(2, 3)
    if causal:
        later = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).triu(1)
        logits = logits.masked_fill(later, -torch.inf)
    elif mask is not None:
        logits = logits + mask
    column = sinks.to(logits.dtype).unsqueeze(-1).expand(*logits.shape[:-1], 1)
    weight = torch.cat([logits, column], -1).softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    return weight[..., :-1].to(value.dtype) @ value
