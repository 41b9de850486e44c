"""Chat templates, beside transformers' rendering."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modalities.text.chat import ChatTemplate

Make = Callable[..., Path]

PLAIN = """{%- if tools %}
    Tools: {{ tools | tojson(indent=2) }}
{% endif %}
{% for message in messages %}
    {%- if message.role == 'tool' %}{% continue %}{% endif %}
    {% set label = message['role'] | upper %}
    {{ bos_token if loop.first }}<|{{ label }}|>
{{ message.content | trim }}{{ eos_token }}
  {% if message.reasoning_content %}
({{ message.reasoning_content }})
  {% endif %}
{% endfor %}
{% if add_generation_prompt %}
<|ASSISTANT|>
{% endif %}"""
FEATURES = """{% set ns = namespace(found=false, d=dict(a=1)) %}
{% macro say(x) %}[{{ x }}]{% endmacro %}
{% for m in messages %}{% if m.role == 'system' %}{% set ns.found = true %}{% break %}{% endif %}{% endfor %}
{{ ns.found }} {{ ns.d['a'] }} {{ say(messages[-1].content) }} {{ documents is none }} {{ tools is defined }}
{% generation %}{{ messages | map(attribute='role') | join(',') }}{% endgeneration %}

{{ {'k': '<é>'} | tojson }} {{ mood | default('calm') }} {{ pad_token is defined }} {{ strftime_now('%Y') }}"""
STRICT = "{% if messages[0].role != 'user' %}{{ raise_exception('must begin with the user') }}{% endif %}ok"

CHAT = [
    {"role": "system", "content": " be brief ", "name": None},
    {"role": "user", "content": "caf\u00e9 <b> & 'q'"},
    {"role": "tool", "content": "skipped"},
    {"role": "assistant", "content": "so\n", "thinking": "hm"},
]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


def peer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder))


@pytest.mark.parametrize("source", [PLAIN, FEATURES])
@pytest.mark.parametrize("keys", [{}, {"tools": [TOOL]}, {"add_generation_prompt": False}])
@pytest.mark.parametrize("messages", [CHAT, CHAT[1:2]])
def test_it_renders_as_transformers_does(
    checkpoint: Make, source: str, keys: dict[str, Any], messages: list[dict[str, Any]]
) -> None:
    folder = checkpoint(chat_template=source)
    expected = peer(folder).apply_chat_template(
        messages, tokenize=False, **{"add_generation_prompt": True} | keys, mood="wild"
    )
    assert ChatTemplate(folder).render(messages, **keys, variables={"mood": "wild"}) == expected


def test_the_file_of_its_own_comes_first(checkpoint: Make) -> None:
    folder = checkpoint(chat_template="config")
    assert ChatTemplate(folder).render(CHAT) == "config"
    (folder / "chat_template.jinja").write_text("file {{ eos_token }}")
    assert ChatTemplate(folder).render(CHAT) == "file </s>" == peer(folder).apply_chat_template(CHAT, tokenize=False)


def test_one_of_several(checkpoint: Make) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    template = ChatTemplate(checkpoint(chat_template=named))
    assert template.render(CHAT) == "plain" and template.render(CHAT, tools=[TOOL]) == "tools"
    assert template.render(CHAT, tools=[TOOL], name="default") == "plain"
    with pytest.raises(ValueError, match="no chat template 'rag'; there are default, tool_use"):
        template.render(CHAT, name="rag")


def test_what_is_refused(checkpoint: Make, tmp_path: Path) -> None:
    template = ChatTemplate(checkpoint(chat_template=STRICT))
    with pytest.raises(ValueError, match=r"chat template of .*: must begin with the user"):
        template.render(CHAT)
    with pytest.raises(ValueError, match="messages: got none"):
        template.render([])
    with pytest.raises(ValueError, match=r"messages\[0\]: expected a mapping with role and content, got 'hi'"):
        template.render(["hi"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"messages\[0\]: expected what JSON can hold"):
        template.render([{"role": "user", "content": tmp_path}])
    with pytest.raises(ValueError, match=r"no chat template; expected chat_template.jinja"):
        ChatTemplate(tmp_path)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(a=1) }}",
        "{{ dict.mro() }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{% include 'x' %}",
        "{{ undefined.attribute }}",
        "{{ ",
    ],
)
def test_a_template_has_no_way_out(checkpoint: Make, source: str) -> None:
    with pytest.raises(ValueError, match="chat template of"):
        ChatTemplate(checkpoint(chat_template=source)).render([{"role": "user", "content": "a"}])


def test_a_template_may_lie_in_the_file_of_processors(tmp_path: Path) -> None:
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "{{ messages[0].content }}"}))
    assert ChatTemplate(tmp_path).render([{"role": "user", "content": "a"}]) == "a"
