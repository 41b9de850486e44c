"""Question and answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import zoo
from zoo.inference.conversation import Conversation
from zoo.models.unified import Unified

TEMPLATE = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}{{ 'a:' if add_generation_prompt }}"


@pytest.fixture
def loaded(model: Unified, tmp_path: Path) -> Unified:
    """A saved model with a chat template beside it."""
    folder = zoo.save(model, tmp_path / "m")
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return zoo.load(folder)


def test_answers_are_kept_and_read_again(loaded: Unified) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 5, "temperature": 0}
    chat = Conversation(loaded, system="x")
    first = "".join(chat.ask("one", **settings))
    assert first == loaded.generate("s:x;u:one;a:", special=False, **settings)
    second = "".join(chat.ask("two", **settings))
    assert second == loaded.generate(f"s:x;u:one;a:{first};u:two;a:", special=False, **settings)
    assert [m["role"] for m in chat.messages] == ["system", "user", "assistant", "user", "assistant"]


def test_an_answer_that_is_left_is_not_kept(loaded: Unified) -> None:
    chat = Conversation(loaded)
    next(chat.ask("one", max_new_tokens=50, seed=1))
    assert chat.messages == []


def test_a_model_without_a_template(model: Unified, saved: Path) -> None:
    with pytest.raises(ValueError, match="no chat template: the model was not loaded from a folder"):
        Conversation(model)
    with pytest.raises(ValueError, match=r"no chat template; expected chat_template.jinja"):
        Conversation(zoo.load(saved))
