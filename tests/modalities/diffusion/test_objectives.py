"""Noising, targets and samplers against what they must do for a known image."""

import pytest
import torch

from modalities.diffusion.ddpm import DdpmSpec
from modalities.diffusion.flow import FlowSpec

OBJECTIVES = [
    FlowSpec(),
    FlowSpec(shift=3.0),
    DdpmSpec(),
    DdpmSpec(prediction="epsilon"),
    DdpmSpec(prediction="sample", schedule="linear"),
]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_flow_is_a_straight_line_with_its_velocity():
    flow = FlowSpec().build()
    clean, noise = torch.randn(2, 1, 2, 2), torch.randn(2, 1, 2, 2)
    t = torch.tensor([0.0, 1.0])
    mixed = flow.mix(clean, noise, t)
    assert torch.equal(mixed[0], clean[0]) and torch.equal(mixed[1], noise[1])
    early, late = flow.mix(clean, noise, torch.full((2,), 0.25)), flow.mix(clean, noise, torch.full((2,), 0.75))
    torch.testing.assert_close((late - early) / 0.5, flow.target(clean, noise, t))


def test_times_are_drawn_as_named():
    for spec, low, high in (
        (FlowSpec(), 0.2, 0.3),
        (FlowSpec(times="logit_normal"), 0.1, 0.2),
        (DdpmSpec(), 0.2, 0.3),
    ):
        t = spec.build().draw(4000, generator())
        assert t.min() >= 0 and t.max() <= 1 and abs(t.mean() - 0.5) < 0.02
        assert low < (t < 0.25).float().mean() < high, spec
    assert FlowSpec(times="logit_normal", mean=1.0).build().draw(4000, generator()).mean() > 0.6


@pytest.mark.parametrize("spec", OBJECTIVES)
@pytest.mark.parametrize("steps", [1, 7])
def test_an_oracle_for_one_image_samples_that_image(spec, steps):
    """With one image in the world its noise follows from the noisy image, so every sampler has to arrive there."""
    objective = spec.build()
    clean = torch.rand(1, 1, 4, 4, generator=generator(1)) * 1.6 - 0.8
    zero = torch.zeros_like(clean)

    def predict(noisy, t):
        image_share = objective.mix(torch.ones_like(clean), zero, t)
        noise_share = objective.mix(zero, torch.ones_like(clean), t)
        noise = (noisy - image_share * clean) / noise_share
        return objective.target(clean, noise, t)

    noise = torch.randn(1, 1, 4, 4, generator=generator(2))
    for scheduler in objective.schedulers:
        out = objective.sample(predict, noise, steps=steps, generator=generator(), clip=True, scheduler=scheduler)
        torch.testing.assert_close(out, clean, atol=0.02, rtol=0)


def test_flow_sampling_equals_plain_euler_steps():
    objective = FlowSpec().build()
    noise = torch.randn(3, 1, 4, 4)

    def predict(x, t):
        return 0.7 * x + t.view(-1, 1, 1, 1)

    x = noise
    for i in range(5):
        x = x - predict(x, torch.full((3,), 1 - i / 5)) / 5
    out = objective.sample(predict, noise, steps=5, generator=generator(), clip=True)
    torch.testing.assert_close(out, x)


def test_ddpm_hides_the_image_and_keeps_its_scale():
    objective = DdpmSpec().build()
    clean, noise = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    shares = [objective.mix(clean, noise, torch.tensor([t])).item() for t in (0.001, 0.5, 1.0)]
    assert shares[0] > 0.99 and 0.6 < shares[1] < 0.8 and shares[2] < 0.01


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FlowSpec(std=0.0), "std: got 0.0"),
        (lambda: DdpmSpec(steps=1), "steps: got 1, expected at least 2"),
        (lambda: run(FlowSpec(), steps=0), "steps: got 0"),
        (lambda: run(FlowSpec(), scheduler="ddim"), "scheduler: got 'ddim', expected one of euler"),
        (lambda: run(DdpmSpec(steps=10), steps=11), "steps: got 11, expected at most the 10"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def run(spec, steps=2, scheduler=None):
    noise = torch.zeros(1, 1, 2, 2)
    return spec.build().sample(
        lambda x, t: x, noise, steps=steps, generator=generator(), clip=True, scheduler=scheduler
    )
