"""Noise: fixed by the seed, absent without one, and drawn only where it is declared."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.laws.cases import LayerCase, context, flat
from zoo.laws.law import close, law, require
from zoo.moe.routing import Routing


def _train(case: LayerCase, seed: int | None) -> tuple[Tensor, Routing, bool]:
    """Output and routing of a training pass, and whether it drew random numbers."""
    layer, tokens = case.layer().train(), case.tokens()
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    before = None if generator is None else generator.get_state()
    with torch.no_grad():
        out = layer(flat(tokens), context(tokens, training=True, generator=generator))
    drew = generator is not None and before is not None and not torch.equal(generator.get_state(), before)
    return out.y, out.routing, drew


@law("the same seed gives the same pass; the global generator is left alone", LayerCase)
def seed(case: LayerCase) -> None:
    state = torch.get_rng_state()
    one, two = _train(case, 11), _train(case, 11)
    close(two[0], one[0], "output under the same seed", 0)
    require(torch.equal(torch.get_rng_state(), state), "the global random state moved")


@law("training without noise equals evaluation", LayerCase, lambda case: not case.properties.inference)
def silent(case: LayerCase) -> None:
    layer, tokens = case.layer(), case.tokens()
    with torch.no_grad():
        expected = layer(flat(tokens), context(tokens)).y
    close(_train(case, None)[0], expected, "output of training without a generator", 0)


@law("a part draws random numbers in training if, and only if, it says so", LayerCase)
def declared(case: LayerCase) -> None:
    one, two = _train(case, 11), _train(case, 12)
    drew = one[2] or not torch.equal(one[0], two[0])  # from the generator, or from its seed
    require(drew == case.properties.noise, f"noise: declared {case.properties.noise}, drawn {drew}")
