"""Cross entropy without the logits of a whole batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from modalities.text import cross_entropy
from modalities.text.cross_entropy import linear_cross_entropy


def case(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(*s, generator=generator).to(dtype) for s in ((37, 8), (11, 8), (11,)))
    target = torch.randint(0, 11, (37,), generator=generator)
    target[::5] = -100
    for tensor in (hidden, weight, bias):
        tensor.requires_grad_()
    return hidden, weight, bias, target


@pytest.mark.parametrize("chunk", [1, 10, None])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-6), (torch.float64, 1e-12), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_it_is_the_plain_form(chunk: int | None, dtype: torch.dtype, near: float, scale: float) -> None:
    hidden, weight, bias, target = case(dtype)
    found, hits = linear_cross_entropy(hidden, weight, bias, target, scale, chunk)
    wide = torch.promote_types(dtype, torch.float32)
    logits = F.linear(hidden.to(wide), weight.to(wide), bias.to(wide)) * scale
    plain = F.cross_entropy(logits, target, reduction="sum")
    torch.testing.assert_close(found, plain, rtol=near, atol=0)
    if dtype != torch.bfloat16:
        assert hits == (logits.argmax(-1) == target).sum()
    inputs = (hidden, weight, bias)
    for a, b in zip(torch.autograd.grad(found * 3, inputs), torch.autograd.grad(plain * 3, inputs), strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a, b, rtol=near, atol=near * 10)


def test_finite_differences_agree() -> None:
    hidden, weight, _, target = case(torch.float64)
    assert torch.autograd.gradcheck(lambda h, w: linear_cross_entropy(h, w, None, target, 0.5, 9)[0], (hidden, weight))


def test_only_what_needs_a_gradient_gets_one() -> None:
    hidden, weight, bias, target = case()
    found, _ = linear_cross_entropy(hidden.detach(), weight, bias, target)
    assert torch.autograd.grad(found, weight)[0].shape == weight.shape
    with torch.no_grad():
        assert torch.equal(linear_cross_entropy(hidden, weight, bias, target)[0], found)
    nothing, hits = linear_cross_entropy(hidden, weight, None, torch.full_like(target, -100))
    assert nothing == 0 and hits == 0 and not torch.autograd.grad(nothing, hidden)[0].any()
    assert linear_cross_entropy(hidden[:0], weight, None, target[:0])[0] == 0


def test_logits_are_held_chunk_by_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    held = []
    plain = F.linear
    monkeypatch.setattr(cross_entropy, "CHUNK", 100)
    monkeypatch.setattr(cross_entropy.F, "linear", lambda *a: held.append(len(a[0])) or plain(*a))  # type: ignore[func-returns-value]
    monkeypatch.setattr(cross_entropy, "LEAST", 4)
    hidden, weight, bias, target = case()
    linear_cross_entropy(hidden, weight, bias, target)
    assert held == [9, 9, 9, 9, 1]


def test_a_broken_row_that_counts_nothing_moves_only_itself() -> None:
    hidden, weight, _, target = case()
    with torch.no_grad():
        hidden[0] = torch.nan
    assert target[0] == -100
    found, _ = linear_cross_entropy(hidden, weight, None, target)
    (of_hidden,) = torch.autograd.grad(found, hidden)
    assert found.isfinite() and of_hidden.isfinite().all()


def test_compiled_equals_eager_without_a_graph_break() -> None:
    hidden, weight, bias, target = case()
    compiled = torch.compile(linear_cross_entropy, backend="aot_eager", fullgraph=True)
    inputs = (hidden, weight, bias)
    found, plain = (call(*inputs, target, 0.5)[0] for call in (compiled, linear_cross_entropy))
    torch.testing.assert_close(found, plain)
    for a, b in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(plain, inputs), strict=True):
        torch.testing.assert_close(a, b)
