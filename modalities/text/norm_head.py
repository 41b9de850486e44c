"""NormHead: logits of a normalised output matrix, whose size then cannot drift (Ling, arXiv 2503.05139; Baichuan 2)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

HeadNorm = Literal["columns", "rows"]
TINY = 1e-7  # added to every norm, as Ling does


def normalised(weight: Tensor, over: HeadNorm) -> Tensor:
    """[V, D] with columns of unit length over the vocabulary (Ling), or rows of unit length (Baichuan 2).

    The lengths get no gradient, as in Ling. A factor on the weight changes the result by no more than 1e-7 over the
    length; the weight itself stays as it is, in evaluation too, so that training can go on from it.
    """
    length = weight.detach().norm(dim=0 if over == "columns" else 1, keepdim=True)
    return weight / (length + TINY)
