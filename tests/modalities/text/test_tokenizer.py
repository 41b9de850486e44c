from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modalities.text.tokenizer import BytesSpec, ByteTokenizer, HuggingFaceSpec, HuggingFaceTokenizer


@given(st.text())
def test_bytes_round_trip(text: str) -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.to_bytes(ids) == text.encode()


def test_bytes_that_are_no_text_are_replaced_and_special_ids_left_out() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.decode([tokenizer.bos, 0xC3, 65, tokenizer.eos, tokenizer.pad]) == "\ufffdA"
    assert tokenizer.encode("a\ud800") == [97, 63]
    assert {tokenizer.bos, tokenizer.eos, tokenizer.pad} == {256, 257, 258} and tokenizer.vocab_size == 259


def test_the_spec_of_bytes_builds_it() -> None:
    assert isinstance(BytesSpec().build(), ByteTokenizer)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A word tokenizer with an eos token and no others, saved as transformers saves it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({"<unk>": 0, "<eos>": 1, "the": 2, "sea": 3}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", unk_token="<unk>").save_pretrained(tmp_path)
    return tmp_path


def test_a_tokenizer_folder_is_read(folder: Path) -> None:
    tokenizer = HuggingFaceSpec(name=str(folder)).build()
    assert tokenizer.encode("the sea the") == [2, 3, 2]
    assert tokenizer.decode([2, 3, 1]).strip() == "the sea"
    assert tokenizer.to_bytes([3]) == b"sea"
    assert tokenizer.vocab_size == 4
    assert tokenizer.bos == tokenizer.eos == tokenizer.pad == 1


def test_a_tokenizer_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        ValueError, match=r"no tokenizer 'nobody/nothing' as a folder or in the local cache \(HF_HUB_OFF"
    ):
        HuggingFaceTokenizer("nobody/nothing")
    with pytest.raises(ValueError, match="name: got an empty string"):
        HuggingFaceSpec(name="")


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=inner).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="neither an eos nor a sep token"):
        HuggingFaceTokenizer(str(tmp_path))
