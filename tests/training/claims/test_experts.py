"""What is said of trained experts and choices, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from training.claims.experts import cosine, information
from zoo.moe.layer import MoE
from zoo.moe.spec import MoESpec
from zoo.spec import parse


def layer(routed: int = 3, **experts: object) -> MoE:
    router = {"type": "top_k", "k": 1, "normalize": "all"}
    plain = {"routed": routed, "experts": {"type": "swiglu", "hidden": 4, **experts}, "router": router}
    torch.manual_seed(0)
    return MoE(parse(MoESpec, plain), 8)


def test_the_cosine_of_experts() -> None:
    one = layer()
    assert abs(cosine([one])) < 0.15
    with torch.no_grad():
        for parameter in one.experts.parameters():
            parameter.copy_(parameter[:1].expand_as(parameter))
    assert cosine([one]) == pytest.approx(1)
    with torch.no_grad():
        for parameter in one.experts.parameters():
            parameter[2].neg_()
    assert cosine([one]) == pytest.approx((1 - 1 - 1) / 3)
    assert math.isnan(cosine([layer(1)])) and math.isnan(cosine([]))


def test_what_latent_experts_share_does_not_make_them_alike() -> None:
    one = layer(type="latent", latent=4, larger=True)
    with torch.no_grad():
        one.experts.get_parameter("into").fill_(100)
    assert abs(cosine([one])) < 0.3


def test_the_information_of_choices() -> None:
    """The same expert in both layers, and another one that is chosen apart from it."""
    first = np.repeat([0, 1, 2, 3], 4)
    apart = np.tile([0, 1, 2, 3], 4)
    chosen = np.stack([first, 3 - first, apart])[:, :, None]
    assert information(chosen[:2]) == pytest.approx(math.log(4))
    assert information(chosen[1:]) == pytest.approx(0, abs=1e-12)
    assert information(chosen) == pytest.approx(math.log(4) / 2)
    assert math.isnan(information(chosen[:1])) and math.isnan(information(np.zeros((0, 5, 0), np.int64)))
