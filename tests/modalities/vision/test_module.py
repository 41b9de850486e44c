"""The vision modality: tokens, loss, answers."""

import numpy as np
import pytest
import torch

from modalities.text.spec import TextSpec
from modalities.vision.data import DIGITS, SklearnDigitsSpec
from modalities.vision.evaluate import evaluate
from modalities.vision.spec import VisionSpec
from modalities.vision.towers import PatchTowerSpec, TimmTowerSpec, patchify, unpatchify

DIM = 16
SMALL = {"size": 8, "channels": 1, "tower": PatchTowerSpec(patch=4)}


def batch_of(modality, count=4):
    raws = SklearnDigitsSpec().build("train")[:count]
    generator = torch.Generator().manual_seed(0)
    batch = modality.collate([modality.example(raw) for raw in raws], generator)
    return modality.prepare(batch, generator)


def test_row_is_an_image_span_and_a_query():
    modality = VisionSpec(**SMALL).build(DIM)
    tokens = modality.encode(batch_of(modality))
    assert tokens.embedding.shape == (4, 5, DIM)
    assert tokens.position[0].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [2, 2]]
    assert tokens.bidirectional[0].tolist() == [True] * 4 + [False]
    assert tokens.span[0, 4] != tokens.span[0, 0] and tokens.mask.all() and (tokens.ids == -1).all()


def test_patchify_is_inverted():
    images = torch.randn(2, 3, 8, 8)
    patches = patchify(images, 2)
    assert patches.shape == (2, 16, 12)
    torch.testing.assert_close(patches[0, 1], images[0, :, :2, 2:4].reshape(-1))
    torch.testing.assert_close(unpatchify(patches, 2, 8), images)


def test_loss_is_a_sum_over_labelled_images():
    torch.manual_seed(0)
    modality = VisionSpec(**SMALL).build(DIM)
    batch = batch_of(modality)
    loss = modality.loss(modality.encode(batch), batch)
    assert loss.count == 4 and loss.metrics["accuracy"][1] == 4
    batch["label"][3] = -1
    fewer = modality.loss(modality.encode(batch), batch)
    first = {k: v[:3] for k, v in batch.items()}
    assert fewer.count == 3
    torch.testing.assert_close(fewer.total, modality.loss(modality.encode(first), first).total)
    fewer.total.backward()
    assert modality.head.weight.grad.abs().sum() > 0 and modality.query.grad is not None


def test_answer_in_words_counts_the_whole_name():
    torch.manual_seed(0)
    text = TextSpec().build(DIM)
    modality = VisionSpec(**SMALL, names=DIGITS, answer="text").build(DIM, text)
    assert not any("text" in key for key in modality.state_dict())
    batch = batch_of(modality)
    tokens = modality.encode(batch)
    lengths = [len(text.tokenizer.encode(DIGITS[n])) for n in batch["label"].tolist()]
    assert tokens.mask.sum(1).tolist() == [5 + n for n in lengths]
    loss = modality.loss(tokens, batch)
    logp = text.logits(tokens.embedding[0, 4:]).log_softmax(-1)
    target = [*text.tokenizer.encode(DIGITS[0]), text.tokenizer.eos]
    by_hand = -sum(logp[i, n] for i, n in enumerate(target))
    alone = {k: v[:1] for k, v in batch.items()}
    torch.testing.assert_close(modality.loss(modality.encode(alone), alone).total, by_hand)
    assert loss.count == 4
    probabilities = modality.classify(lambda t: t, batch["image"])
    torch.testing.assert_close(probabilities.sum(1), torch.ones(4))


def test_words_without_a_text_modality_bring_their_own():
    modality = VisionSpec(**SMALL, answer="text").build(DIM)
    assert any(key.startswith("own_text.") for key in modality.state_dict())


def test_shift_moves_training_images_only():
    modality = VisionSpec(**SMALL, shift=2).build(DIM)
    batch = batch_of(modality.eval())
    generator = torch.Generator().manual_seed(1)
    assert modality.prepare(batch, generator)["image"] is batch["image"]
    ramp = {"image": torch.arange(8.0).expand(64, 1, 8, 8)}
    moved = modality.train().prepare(ramp, generator)["image"]
    assert set(moved[:, 0, 0, 3].tolist()) == {1.0, 2.0, 3.0, 4.0, 5.0} and moved.min() == 0 and moved.max() == 7
    again = modality.prepare(ramp, torch.Generator().manual_seed(5))["image"]
    assert torch.equal(again, modality.prepare(ramp, torch.Generator().manual_seed(5))["image"])


@pytest.mark.parametrize("spec", [VisionSpec(**SMALL), VisionSpec(**SMALL, answer="text")])
def test_parameters_are_counted(spec):
    built = spec.build(DIM, TextSpec().build(DIM))
    assert spec.parameters(DIM) == sum(p.numel() for p in built.parameters())


@pytest.mark.parametrize(
    ("name", "channels", "grid"), [("test_vit", 3, (2, 2)), ("test_convnext", 1, (1, 1)), ("test_byobnet", 3, (1, 1))]
)
def test_timm_towers(name, channels, grid):
    spec = TimmTowerSpec(name=name)
    tower = spec.build(32, channels, DIM)
    tokens = tower(torch.zeros(2, channels, 32, 32))
    assert tower.grid == grid and tokens.shape == (2, grid[0] * grid[1], DIM)
    assert spec.parameters(32, channels, DIM) == sum(p.numel() for p in tower.parameters())


def test_frozen_timm_tower_stays_as_it_is():
    tower = TimmTowerSpec(name="test_byobnet", trainable=False).build(32, 3, DIM).train()
    before = {k: v.clone() for k, v in tower.model.state_dict().items()}
    tower(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(torch.equal(v, before[k]) for k, v in tower.model.state_dict().items())
    assert all(p.grad is None for p in tower.model.parameters()) and tower.project.weight.grad is not None


def test_unknown_timm_name_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"name: timm has no model 'resnet81'; nearest: .*resnet18"):
        TimmTowerSpec(name="resnet81").build(32, 3, DIM)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 10, "tower": PatchTowerSpec(patch=4)}, "tower.patch: got 4, expected a divisor of the image size 10"),
        ({"names": ("a",)}, "names: got 1 names, expected one for each of the 10"),
        ({"classes": 2, "names": ("a", "a")}, "names: .*its own name"),
        ({"classes": 1}, "classes: got 1"),
        ({"shift": -1}, "shift: got -1"),
    ],
)
def test_impossible_specs_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        VisionSpec(**options)


def test_label_out_of_range_says_what_to_raise():
    modality = VisionSpec(**SMALL | {"classes": 2}).build(DIM)
    with pytest.raises(ValueError, match=r"label: got 7, expected 0\.\.1; raise vision's `classes`"):
        modality.example({"image": np.zeros((8, 8, 1), np.uint8), "label": 7})


def test_evaluation_compares_with_the_nearest_mean(tmp_path):
    digits = SklearnDigitsSpec()
    modality = VisionSpec(**SMALL).build(DIM)
    score = evaluate(
        modality, lambda: lambda t: t, digits.build("train"), digits.build("test"),
        generator=torch.Generator(), out=tmp_path, limit=200,
    )[0]  # fmt: skip
    assert 0.85 < score.baseline < 0.97 and 0 <= score.value < 0.5 and not score.won
    assert (tmp_path / "vision_errors.png").is_file()


def test_a_stand_in_trunk_learns_digits(stand_in):
    torch.manual_seed(0)
    modality, trunk = VisionSpec(**SMALL).build(32), stand_in(32)
    batch = batch_of(modality, count=200)
    optimiser = torch.optim.Adam([*modality.parameters(), *trunk.parameters()], lr=3e-3)
    for _ in range(60):
        loss = modality.loss(trunk(modality.encode(batch)), batch)
        optimiser.zero_grad()
        (loss.total / loss.count).backward()
        optimiser.step()
    right = modality.sample(trunk, batch["image"]) == batch["label"]
    assert right.float().mean() > 0.9


@pytest.mark.parametrize("answer", ["class", "text"])
def test_units_are_known_before_the_trunk_runs(answer):
    modality = VisionSpec(**SMALL, names=DIGITS, answer=answer).build(DIM)
    batch = batch_of(modality)
    batch["label"][1] = -1
    tokens = modality.encode(batch)
    units, count = modality.units(batch)
    assert units == modality.loss(tokens, batch).count == 3 and count == tokens.mask.sum()
