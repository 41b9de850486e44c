"""One choice for all tokens of a sequence."""

from __future__ import annotations

import pytest
import torch

from zoo.moe.gates.linear import LinearGateSpec
from zoo.moe.layer import MoE
from zoo.moe.pool import Pool
from zoo.moe.routers.sequence_choice import SequenceChoiceSpec
from zoo.moe.routers.top_k import TopKSpec
from zoo.moe.routing import RoutingContext
from zoo.moe.spec import MoESpec
from zoo.spec import SpecError, parse


def test_all_real_tokens_of_a_sequence_choose_as_their_mean() -> None:
    torch.manual_seed(0)
    router = SequenceChoiceSpec(k=2, gate=LinearGateSpec(init_std=1.0)).build(6, Pool(routed=4)).double()
    plain = TopKSpec(k=2).build(6, Pool(routed=4)).double()
    plain.load_state_dict(router.state_dict())
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[0, 3:] = False
    document = torch.tensor([[0, 0, 0, 0, 0], [3, 3, 1, 1, 1]])
    routing = router(x.flatten(0, 1), RoutingContext(shape=(2, 5), mask=mask.flatten(), document=document.flatten()))
    for tokens in ([0, 1, 2], [5, 6], [7, 8, 9]):
        mean = x.flatten(0, 1)[tokens].mean(0, keepdim=True)
        expected = plain(mean, RoutingContext(shape=(1, 1), mask=torch.ones(1, dtype=torch.bool)))
        assert torch.equal(routing.expert[tokens], expected.expert.expand(len(tokens), -1))
        torch.testing.assert_close(routing.gate[tokens], expected.gate.expand(len(tokens), -1), rtol=0, atol=1e-14)
    assert (routing.expert[3:5] == 4).all()


def test_half_of_the_slices_serve_whole_sequences() -> None:
    plain = {"routed": 4, "experts": {"type": "union", "hidden": 3}, "allow_future": True,
             "router": {"type": "sequence_choice", "k": 2, "gate": {"init_std": 1.0}}}  # fmt: skip
    torch.manual_seed(1)
    moe = MoE(parse(MoESpec, plain), 8).double()
    stats = moe(torch.randn(1, 9, 8).double(), RoutingContext(shape=(1, 9), mask=torch.ones(9, dtype=torch.bool))).stats
    assert sorted(stats.load.tolist()) == [0, 0, 9, 9]


def test_what_cannot_be_is_refused() -> None:
    plain = {"routed": 4, "experts": {"type": "union", "hidden": 3}, "router": {"type": "sequence_choice"}}
    with pytest.raises(SpecError, match="router: lets later tokens matter"):
        parse(MoESpec, plain)
    with pytest.raises(ValueError, match="gate: expected one without noise"):
        SequenceChoiceSpec(gate=LinearGateSpec(jitter=0.1))
