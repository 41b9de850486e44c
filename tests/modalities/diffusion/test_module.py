"""The diffusion modality: tokens, loss, guidance, sampling."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from modalities.diffusion.autoencoders import DiffusersSpec
from modalities.diffusion.ddpm import DdpmSpec
from modalities.diffusion.evaluate import evaluate
from modalities.diffusion.flow import FlowSpec
from modalities.diffusion.spec import DiffusionSpec
from modalities.text.spec import TextSpec
from modalities.vision.data import SklearnDigitsSpec
from modalities.vision.files import read_image

DIM = 16
SMALL = {"size": 8, "channels": 1, "patch": 4, "steps": 3}
TINY = DiffusersSpec(blocks=(8, 8), latent_channels=2, groups=4)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def same(tokens):
    return tokens


def batch_of(modality, count=4, seed=0):
    raws = SklearnDigitsSpec().build("train")[:count]
    examples = [modality.example(raw) for raw in raws]
    return modality.prepare(modality.collate(examples, generator()), generator(seed))


def built(**options):
    torch.manual_seed(0)
    return DiffusionSpec(**SMALL | options).build(DIM, TextSpec().build(DIM))


@pytest.mark.parametrize(("inject", "has_cond"), [("cond", True), ("token", False), ("both", True)])
def test_time_and_class_enter_as_told(inject, has_cond):
    modality = built(inject=inject)
    batch = batch_of(modality)
    tokens = modality.encode(batch)
    assert tokens.embedding.shape == (4, 4, DIM) and tokens.bidirectional.all()
    assert tokens.position[0].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert (tokens.cond is not None) == has_cond
    moved = modality.encode(batch | {"t": batch["t"] * 0.5})
    assert torch.equal(moved.embedding, tokens.embedding) == (inject == "cond")
    if has_cond:
        assert tokens.cond.shape == (4, DIM) and not torch.equal(moved.cond, tokens.cond)


def test_loss_is_the_squared_error_per_patch():
    modality = built()
    batch = batch_of(modality)
    hidden = modality.encode(batch)
    loss = modality.loss(hidden, batch)
    expected = ((modality.decode(hidden) - batch["target"]) ** 2).mean(-1).sum()
    torch.testing.assert_close(loss.total, expected)
    assert loss.count == 16
    loss.total.backward()
    assert all(p.grad is not None for p in modality.parameters())


def test_prepare_draws_from_its_generator_alone():
    modality = built()
    first, again, other = batch_of(modality, seed=3), batch_of(modality, seed=3), batch_of(modality, seed=4)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["noisy"], other["noisy"]) and not torch.equal(first["t"], other["t"])


def test_conditions_are_dropped_at_their_rate():
    modality = built(drop=0.25)
    batch = {"image": torch.zeros(800, 1, 8, 8), "label": torch.zeros(800, dtype=torch.int64)}
    label = modality.prepare(batch, generator())["label"]
    assert 0.2 < (label == 10).float().mean() < 0.3 and (batch["label"] == 0).all()
    modality = built(drop=0.25, condition="text")
    batch = {"image": batch["image"], **modality._condition(["four"] * 800)}
    mask = modality.prepare(batch, generator())["mask"]
    assert 0.2 < (mask.sum(1) == 1).float().mean() < 0.3 and mask[:, 0].all() and batch["mask"].all()


def test_a_prompt_stands_before_its_image():
    modality = built(condition="text")
    assert not any("text" in key for key in modality.state_dict())
    batch = modality._condition(["a four", "a"])
    batch |= {"noisy": torch.randn(2, 1, 8, 8), "t": torch.tensor([0.5, 0.5])}
    tokens = modality.encode(batch)
    assert tokens.embedding.shape == (2, 7 + 4, DIM) and tokens.mask.sum(1).tolist() == [11, 6]
    assert tokens.position[0, 6:8].tolist() == [[6, 6], [7, 7]] and tokens.position[1, 7].tolist() == [2, 2]
    assert not tokens.bidirectional[:, :7].any() and tokens.bidirectional[:, 7:].all()
    assert tokens.ids[1, 2:].eq(-1).all() and tokens.ids[0, 1] == modality.text.tokenizer.encode("a")[0]
    assert modality.decode(tokens).shape == (2, 4, 16)
    long = modality._condition(["x" * 500])
    assert long["ids"].shape == (1, modality.spec.prompt)


def test_guidance_one_is_the_conditioned_model_and_zero_the_free_one():
    modality = built()
    noisy, t = torch.randn(2, 1, 8, 8), torch.tensor([0.3, 0.9])
    labels = torch.tensor([1, 2])
    rows = []

    def step(tokens):
        rows.append(tokens.shape[0])
        return tokens

    one, zero, two = (modality._guided(step, {"label": labels}, noisy, t, w) for w in (1.0, 0.0, 2.0))
    free = modality._guided(step, {"label": torch.tensor([10, 10])}, noisy, t, 1.0)
    assert rows == [2, 4, 4, 2]
    torch.testing.assert_close(zero, free)
    torch.testing.assert_close(two, free + 2 * (one - free))
    assert not torch.allclose(one, free)


@pytest.mark.parametrize("objective", [FlowSpec(), DdpmSpec()])
@pytest.mark.parametrize("condition", ["class", "text"])
def test_equal_seeds_give_equal_images(objective, condition):
    modality = built(objective=objective, condition=condition).eval()
    asked = [3, 4] if condition == "class" else ["a three", "four"]
    for scheduler in modality.objective.schedulers:
        images, again, other = (
            modality.sample(same, asked, generator=generator(seed), scheduler=scheduler) for seed in (0, 0, 1)
        )
        assert images.shape == (2, 8, 8, 1) and images.dtype == torch.uint8
        assert torch.equal(images, again) and not torch.equal(images, other)


def test_latents_of_a_frozen_autoencoder():
    modality = built(autoencoder=TINY, patch=2)
    batch = batch_of(modality)
    assert batch["noisy"].shape == (4, 2, 4, 4) and batch["target"].shape == (4, 4, 8)
    modality.train()
    assert not modality.autoencoder.model.training
    modality.loss(modality.encode(batch), batch).total.backward()
    frozen = list(modality.autoencoder.parameters())
    assert frozen and all(p.grad is None and not p.requires_grad for p in frozen)
    assert modality.sample(same, [1, 2, 3], generator=generator()).shape == (3, 8, 8, 1)
    latents = modality.autoencoder.encode(batch["image"])
    torch.testing.assert_close(modality.autoencoder.encode(batch["image"]), latents)
    assert modality.autoencoder.decode(latents).shape == batch["image"].shape


def test_autoencoder_by_name_is_read_from_its_folder(tmp_path):
    TINY.build(1).model.save_pretrained(tmp_path)
    named = DiffusersSpec(name=str(tmp_path))
    assert named.latent(8, 1) == (2, 4)
    DiffusionSpec(**SMALL | {"patch": 2, "autoencoder": named}).build(DIM)
    with pytest.raises(ValueError, match=r"name: .* reads 1 channels, the images have 3"):
        named.build(3)
    with pytest.raises(ValueError, match="patch: got 3, expected a divisor of the image size 4"):
        DiffusionSpec(**SMALL | {"patch": 3, "autoencoder": named}).build(DIM)


@pytest.mark.parametrize(
    "options", [{}, {"condition": "text"}, {"autoencoder": TINY, "patch": 2}, {"objective": DdpmSpec()}]
)
def test_parameters_are_counted(options):
    modality = built(**options)
    assert modality.spec.parameters(DIM) == sum(p.numel() for p in modality.parameters())


def test_a_few_steps_of_training_lower_the_loss():
    modality = built()
    optimiser = torch.optim.Adam(modality.parameters(), lr=1e-2)
    losses = []
    for seed in range(60):
        batch = batch_of(modality, count=32, seed=seed)
        loss = modality.loss(modality.encode(batch), batch)
        optimiser.zero_grad()
        (loss.total / loss.count).backward()
        optimiser.step()
        losses.append(loss.total.item() / loss.count.item())
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_flow_trains_without_diffusers():
    code = (
        "import sys; sys.modules['diffusers'] = None\n"
        "import torch; from modalities.diffusion.spec import DiffusionSpec\n"
        "m = DiffusionSpec(size=8, channels=1).build(8); g = torch.Generator()\n"
        "b = m.prepare({'image': torch.zeros(2, 1, 8, 8), 'label': torch.tensor([0, 1])}, g)\n"
        "m.loss(m.encode(b), b).total.backward()\n"
        "assert not {'sklearn', 'timm', 'transformers', 'PIL'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": 3}, r"patch: got 3, expected a divisor of the image size 8"),
        ({"drop": 1.0}, r"drop: got 1.0, expected 0 <= drop < 1"),
        ({"drop": 0.0}, r"guidance: got 2.0, expected 1 with drop 0"),
        ({"classes": 0}, r"classes: got 0"),
        ({"autoencoder": DiffusersSpec(blocks=(32,) * 5)}, r"blocks: got 5, but the image size 8 is no multiple of 16"),
    ],
)
def test_impossible_specs_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DiffusionSpec(**SMALL | options)


def test_group_norm_has_to_fit():
    with pytest.raises(ValueError, match=r"blocks: got 12, expected multiples of groups \(8\)"):
        DiffusersSpec(blocks=(8, 12), groups=8)


def test_wrong_conditions_say_what_is_expected():
    modality = built()
    for wrong in ([10], [-1], ["three"]):
        with pytest.raises(ValueError, match=r"conditions: got .*class numbers 0\.\.9"):
            modality.sample(same, wrong, generator=generator())
    with pytest.raises(ValueError, match="conditions: got 3, expected a prompt in words"):
        built(condition="text").sample(same, [3], generator=generator())
    with pytest.raises(ValueError, match="label: missing in a raw example, but condition is class"):
        modality.example({"image": np.zeros((8, 8, 1), np.uint8), "text": "a three"})


@pytest.mark.parametrize("condition", ["class", "text"])
def test_evaluation_judges_samples_and_draws_them(tmp_path, condition):
    digits = SklearnDigitsSpec()
    score = evaluate(
        built(condition=condition).eval(), lambda: same, digits.build("train")[:400], digits.build("test"),
        generator=generator(), out=tmp_path, limit=40,
    )[0]  # fmt: skip
    assert score.baseline == 0.30 and score.value < 0.5 and "40 samples" in score.note
    assert read_image(tmp_path / "images.png").shape == (10 * 50 + 2, 4 * 50 + 2, 1)


def test_padding_and_batching_change_nothing(stand_in):
    """A row with a short prompt gives the same prediction beside a longer one as alone."""
    modality, trunk = built(condition="text"), stand_in(DIM)
    noisy, t = torch.randn(2, 1, 8, 8), torch.tensor([0.2, 0.7])
    both = modality._condition(["a long prompt", "a"]) | {"noisy": noisy, "t": t}
    alone = modality._condition(["a"]) | {"noisy": noisy[1:], "t": t[1:]}
    together = modality.decode(trunk(modality.encode(both)))[1:]
    torch.testing.assert_close(together, modality.decode(trunk(modality.encode(alone))), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(together, modality.decode(trunk(modality.encode(both)))[:1])


@pytest.mark.parametrize("condition", ["class", "text"])
def test_units_are_known_before_the_trunk_runs(condition):
    modality = built(condition=condition)
    batch = batch_of(modality)
    tokens = modality.encode(batch)
    real = tokens.mask.sum() if tokens.mask is not None else torch.tensor(tokens.embedding[..., 0].numel())
    units, count = modality.units(batch)
    assert units == modality.loss(tokens, batch).count and count == real
