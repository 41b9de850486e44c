"""The tokenizer beside the weights, and its agreement with transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modalities.text.files_tokenizer import FilesSpec, FilesTokenizer
from modalities.text.sampling import Sampling
from modalities.text.spec import TextSpec
from modalities.text.tokenizer_files import TEXT_FILES, TokenizerFiles, copy_text_files
from modalities.text.writer import Writer

Make = Callable[..., Path]
TEXTS = [
    "the moon is a harsh mistress",
    "",
    " two  spaces ",
    "\u00e9t\u00e9 \u20ac\n\U0001f600",
    "a<|end|>b</s> c",
    "x",
]


def attached(folder: Path, **keys: Any) -> FilesTokenizer:
    tokenizer = FilesSpec(**{"vocab_size": 400} | keys).build()
    tokenizer.attach(folder)
    return tokenizer


def automatic(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder))


@pytest.mark.parametrize("kind", ["byte_level", "metaspace"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"add_bos_token": False, "add_eos_token": True},  # not looked at where there is a tokenizer.json
        {"pad_token": "<pad>", "additional_special_tokens": ["<|tool|>"]},
        {"added_tokens_decoder": {"3": {"content": "<|end|>", "special": False}, "500": {"content": "<new>"}}},
    ],
)
def test_ids_and_texts_are_those_of_transformers(checkpoint: Make, kind: str, settings: dict[str, Any]) -> None:
    folder = checkpoint(kind, **settings)
    tokenizer, peer = attached(folder), automatic(folder)
    for text in [*TEXTS, "<|tool|><pad><new>"]:
        assert tokenizer.prompt(text) == (peer(text).input_ids or [tokenizer.bos])
        ids = tokenizer.encode(text)
        assert ids == peer(text, add_special_tokens=False).input_ids
        assert tokenizer.decode(ids) == peer.decode(ids, skip_special_tokens=True)
    assert tokenizer.bos == peer.bos_token_id and tokenizer.ends == (peer.eos_token_id,)
    assert tokenizer.pad == (peer.eos_token_id if peer.pad_token_id is None else peer.pad_token_id)
    assert set(tokenizer.files.special) >= set(peer.all_special_tokens)
    assert tokenizer.files.named == peer.special_tokens_map


def test_truncation_and_padding_in_the_file_are_left_out(checkpoint: Make) -> None:
    folder = checkpoint()
    content = json.loads((folder / "tokenizer.json").read_text())
    content["truncation"] = {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert len(attached(folder).prompt("the moon is a harsh mistress, please")) > 2


def test_names_of_old(checkpoint: Make) -> None:
    folder = checkpoint()
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "special_tokens_map.json").write_text('{"eos_token": "</s>", "pad_token": {"content": "<unk>"}}')
    tokenizer = attached(folder)
    assert tokenizer.ends == (2,) and tokenizer.pad == 0 and tokenizer.bos == 2
    assert tokenizer.files.named == automatic(folder).special_tokens_map


def test_ids_of_the_spec_come_first(checkpoint: Make) -> None:
    tokenizer = attached(checkpoint(), bos=7, eos=(9, 8), pad=6)
    assert (tokenizer.bos, tokenizer.ends, tokenizer.eos, tokenizer.pad) == (7, (9, 8), 9, 6)
    assert tokenizer.special("</s>") == 2 and tokenizer.special("moon") is None


@pytest.mark.parametrize("kind", ["byte_level", "metaspace"])
def test_pieces_of_a_stream_are_what_follows_the_prompt(checkpoint: Make, kind: str) -> None:
    tokenizer = attached(checkpoint(kind))
    for text in ["the moon, moon is \u00e9t\u00e9 \u20ac \U0001f600 moon", "moon"]:
        ids = tokenizer.encode(text)
        for cut in range(len(ids)):
            writer = Writer(tokenizer, before=[tokenizer.bos, *ids[:cut]])
            out = []
            for token in ids[cut:]:
                writer.push(token)
                out.append(writer.take())
            if not tokenizer.decode(ids[:cut]).endswith("\ufffd"):
                assert tokenizer.decode(ids[:cut]) + "".join(out) + writer.finish() == text


def test_without_files_ids_still_go() -> None:
    tokenizer = FilesSpec(vocab_size=10, eos=(3,)).build()
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.never) == (3, 3, 3, ())
    with pytest.raises(ValueError, match="was not loaded from a folder with tokenizer files"):
        tokenizer.encode("a")
    none = FilesSpec(vocab_size=10).build()
    assert none.ends == () and none.pad == 0
    with pytest.raises(ValueError, match=r"tokenizer.eos: this tokenizer has none"):
        _ = none.bos


def test_folders_that_hold_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no tokenizer files; expected tokenizer.json or tokenizer.model"):
        attached(tmp_path).encode("a")
    assert attached(tmp_path).ends == ()
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(ValueError, match=r"tokenizer.json: not a tokenizer"):
        attached(tmp_path).encode("a")
    (tmp_path / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"tokenizer_config.json: expected a mapping at the top, got list"):
        attached(tmp_path).encode("a")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"vocab_size": 0}, "vocab_size: got 0"),
        ({"eos": (400,)}, r"eos: got 400, expected an id of 0..399"),
        ({"pad": -1}, "pad: got -1"),
    ],
)
def test_impossible_keys(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FilesSpec(**{"vocab_size": 400} | keys)


def test_a_vocabulary_of_another_form_goes_through_transformers(tmp_path: Path) -> None:
    from transformers import GPT2Tokenizer

    vocab = {"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3, "\u0120": 4}
    peer = GPT2Tokenizer(vocab=vocab, merges=[("a", "b")])
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    tokenizer = attached(tmp_path)
    assert tokenizer.encode("ab a") == peer("ab a").input_ids == [3, 4, 1]
    assert tokenizer.files.named["eos_token"] == "<|endoftext|>" and tokenizer.ends == (0,)


def test_files_are_copied_as_they_are(checkpoint: Make, tmp_path: Path) -> None:
    folder, target = checkpoint(), tmp_path / "copy"
    target.mkdir()
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "other.py").write_text("raise SystemExit")
    written = copy_text_files(folder, target)
    assert {p.name for p in written} == {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert all(p.name in TEXT_FILES and p.read_bytes() == (folder / p.name).read_bytes() for p in written)
    assert copy_text_files(folder, target) == []


def test_reading_one_brings_no_transformers(checkpoint: Make) -> None:
    source = (
        "import sys; from pathlib import Path; from modalities.text.files_tokenizer import FilesSpec\n"
        f"t = FilesSpec(vocab_size=400).build(); t.attach(Path({str(checkpoint())!r})); t.prompt('moon')\n"
        "assert 'tokenizers' in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", source], check=True, cwd=Path(__file__).parents[3])


def test_the_class_of_files_says_what_it_found(checkpoint: Make, tmp_path: Path) -> None:
    assert TokenizerFiles.found(checkpoint()) and not TokenizerFiles.found(tmp_path)


def test_a_special_token_as_stop_text_ends_a_row(checkpoint: Make) -> None:
    text = TextSpec(tokenizer=FilesSpec(vocab_size=400, eos=(2,))).build(8)
    text.attach(checkpoint())
    assert text.ends(Sampling(stop=("<|end|>", "moon"))) == {2, 3}
    assert text.ends(Sampling(stop=("<|end|>",), eos=(5,))) == {3, 5}
