"""The text modality that others borrow."""

from __future__ import annotations

import copy

import pytest

from modalities.base import Modality
from modalities.text.borrowing import BorrowsText
from modalities.text.spec import TextSpec


def test_a_borrowed_text_is_not_held_and_an_own_one_is() -> None:
    lent, (borrower, owner) = TextSpec().build(8), (BorrowsText(), BorrowsText())
    borrower.borrow(lent, 8)
    owner.borrow(None, 8)
    assert borrower.text is lent and not borrower.state_dict()
    assert owner.text is owner.own_text and set(owner.state_dict()) == {"own_text.embedding.weight"}
    twin = copy.deepcopy(owner)
    assert twin.text is twin.own_text and twin.text is not owner.text


def test_another_modality_cannot_be_lent_as_text() -> None:
    with pytest.raises(ValueError, match=r"^text: got Modality, expected the model's text modality"):
        BorrowsText().borrow(Modality(), 8)
