"""Labelled images: real sets and own files."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from modalities.roots import find
from modalities.vision.cifar10 import CLASSES, pack
from modalities.vision.data import Cifar10Spec, ImageFilesSpec, SklearnDigitsSpec, stratified


def fill(folder, names=("cat", "dog"), count=10):
    for name in names:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (5, 4), (i, 0, 0)).save(folder / name / f"{i:02d}.png")
    return str(folder)


def test_digits_are_split_by_class_and_cover_the_set():
    parts = {split: SklearnDigitsSpec().build(split) for split in ("train", "validation", "test")}
    assert {k: len(v) for k, v in parts.items()} == {"train": 1266, "validation": 178, "test": 353}
    first = parts["train"][3]
    assert first["image"].shape == (8, 8, 1) and first["image"].dtype == np.uint8
    assert max(int(raw["image"].max()) for raw in parts["train"]) == 255
    assert first["label"] == 3 and first["text"] == "a handwritten three"
    counts = np.bincount([raw["label"] for raw in parts["test"]])
    assert counts.min() >= 34 and counts.max() <= 37
    again = SklearnDigitsSpec().build("test")
    assert all(np.array_equal(a["image"], b["image"]) for a, b in zip(parts["test"], again, strict=True))


def test_stratified_covers_everything_once():
    labels = ["a"] * 23 + ["b"] * 10
    parts = [stratified(labels, split) for split in ("train", "validation", "test")]
    assert sorted(i for part in parts for i in part) == list(range(33))
    with pytest.raises(ValueError, match=r"split: got 'dev'"):
        stratified(labels, "dev")


@pytest.mark.skipif(find("cifar10/cifar10_6k.npz") is None, reason="cifar10 is not below ZOO_DATA")
def test_cifar10_keeps_its_split():
    sizes = {split: len(Cifar10Spec().build(split)) for split in ("train", "validation", "test")}
    assert sizes == {"train": 5400, "validation": 600, "test": 1000}
    raw = Cifar10Spec().build("test")[0]
    assert raw["image"].shape == (32, 32, 3) and raw["text"] == f"a photo of a {raw['classes'][raw['label']]}"


def test_missing_cifar10_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    assert not Cifar10Spec().available()
    with pytest.raises(FileNotFoundError, match=r"cifar10_6k.*ZOO_DATA.*download"):
        Cifar10Spec().build("train")


def test_cifar10_archive_is_packed_class_by_class():
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        for part in ("train", "test"):
            for name in CLASSES:
                for i in range(3):
                    image = io.BytesIO()
                    Image.new("RGB", (32, 32), (i * 40, 0, 0)).save(image, format="PNG")
                    archive.writestr(f"root/{part}/{name}/{i:04d}.jpg", image.getvalue())
        arrays = pack(archive, train=2, test=1)
    assert arrays["train_images"].shape == (20, 32, 32, 3) and arrays["test_images"].shape == (10, 32, 32, 3)
    assert arrays["train_labels"].tolist() == [*range(10), *range(10)]
    assert arrays["train_images"][10:, 0, 0, 0].tolist() == [40] * 10
    with pytest.raises(ValueError, match="fewer than 4 train images"), zipfile.ZipFile(memory) as archive:
        pack(archive, train=4, test=1)


def test_own_folder(tmp_path):
    spec = ImageFilesSpec(path=fill(tmp_path / "mine"))
    train = spec.build("train")
    assert [len(spec.build(s)) for s in ("train", "validation", "test")] == [14, 2, 4]
    assert train[0]["classes"] == ("cat", "dog") and train[-1]["label"] == 1 and train[-1]["text"] == "dog"
    assert train[0]["image"].shape == (4, 5, 3) and len(train[:3]) == 3


def test_own_split_folders(tmp_path):
    for split, count in (("train", 3), ("test", 1)):
        fill(tmp_path / split, names=("10", "9"), count=count)
    spec = ImageFilesSpec(path=str(tmp_path))
    assert [len(spec.build(s)) for s in ("train", "test")] == [6, 2]
    assert spec.build("train")[0]["classes"] == ("9", "10")
    with pytest.raises(FileNotFoundError, match="validation"):
        spec.build("validation")


def test_own_manifest(tmp_path):
    fill(tmp_path, names=("x",))
    lines = ["image,label,text", *(f"x/{i:02d}.png,cat,a cat number {i}" for i in range(10))]
    (tmp_path / "all.csv").write_text("\n".join(lines))
    raw = ImageFilesSpec(path=str(tmp_path / "all.csv"), classes=("dog", "cat")).build("train")[2]
    assert raw["label"] == 1 and raw["text"] == "a cat number 2"


def test_faulty_manifests_name_the_row(tmp_path):
    fill(tmp_path, names=("x",))
    for content, message in (
        ("image,label\nx/00.png,cat\nx/99.png,cat", "row 2.*99"),
        ("imgae,label\nx/00.png,cat", "row 1.*image.*did you mean 'imgae'"),
        ("image,note\nx/00.png,cat", "row 1.*neither a label nor a text"),
    ):
        (tmp_path / "bad.csv").write_text(content)
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            ImageFilesSpec(path=str(tmp_path / "bad.csv")).build("train")


def test_unknown_label_and_too_few_images(tmp_path):
    path = fill(tmp_path / "few", count=3)
    with pytest.raises(ValueError, match=r"label 'cat', expected one of \['dog'\]"):
        ImageFilesSpec(path=path, classes=("dog",)).build("train")
    with pytest.raises(ValueError, match="too few images for a test split"):
        ImageFilesSpec(path=path).build("test")


def test_corrupt_image_is_named_when_read(tmp_path):
    path = fill(tmp_path / "mine")
    (tmp_path / "mine" / "cat" / "00.png").write_bytes(b"\x89PNG\r\n\x1a\n rubbish")
    with pytest.raises(ValueError, match=r"00\.png: "):
        ImageFilesSpec(path=path).build("train")[0]
