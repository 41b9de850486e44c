"""Chat templates: messages to the text a model was trained on, rendered as transformers renders them."""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from modalities.text.tokenizer_files import CHATS, SETTINGS, TokenizerFiles, read_json

Message = Mapping[str, Any]
REASONING = ("reasoning_content", "thinking", "reasoning")  # names under which the thoughts in a message go


class ChatKeys(TypedDict, total=False):
    """The settings of `ChatTemplate.render` as keyword arguments."""

    add_generation_prompt: bool
    tools: Sequence[Mapping[str, Any]] | None
    documents: Sequence[Mapping[str, Any]] | None
    name: str | None
    variables: Mapping[str, Any] | None


class ChatTemplate:
    """The template of a folder: chat_template.jinja, else `chat_template` of tokenizer_config.json.

    Templates come with checkpoints and are code of a kind: they run in jinja2's sandbox, see plain JSON values only,
    and can change nothing. Raises ValueError where the folder has none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sources = _sources(folder)
        if not self.sources:
            raise ValueError(f"{folder}: no chat template; expected {CHATS[0]}, or chat_template in {SETTINGS}")
        self.tokens = TokenizerFiles(folder).named if TokenizerFiles.found(folder) else {}

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        name: str | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The chat as one text, special tokens included.

        messages are mappings with `role` and `content`; keys that are None are left out. add_generation_prompt opens
        the answer. tools are JSON schemas. name picks one of several templates, which otherwise is `tool_use` where
        there are tools, else `default`; variables are what else the template reads. Raises ValueError where the
        template refuses the messages or is broken.
        """
        if not messages:
            raise ValueError("messages: got none, expected at least one")
        given = {"messages": [_message(i, message) for i, message in enumerate(messages)]}
        given |= {"tools": _plain(tools, "tools"), "documents": _plain(documents, "documents")}
        values = self.tokens | _plain(dict(variables or {}), "variables") | given
        try:
            template = _compiled(self._source(name, bool(tools)))
            return str(template.render(add_generation_prompt=add_generation_prompt, **values))
        except Exception as error:  # the template's own doing: it may divide by zero too
            raise ValueError(f"chat template of {self.folder}: {error}") from error

    def _source(self, name: str | None, tools: bool) -> str:
        wanted = name or ("tool_use" if tools and "tool_use" in self.sources else "default")
        if wanted not in self.sources:
            raise ValueError(f"{self.folder}: no chat template {wanted!r}; there are {', '.join(self.sources)}")
        return self.sources[wanted]


def _sources(folder: Path) -> dict[str, str]:
    """Name -> template; the file of its own comes first, that of processors of old last."""
    if (folder / CHATS[0]).is_file():
        return {"default": (folder / CHATS[0]).read_text(encoding="utf-8")}
    found = read_json(folder / SETTINGS).get("chat_template") or read_json(folder / CHATS[1]).get("chat_template")
    if isinstance(found, list):
        return {str(one["name"]): str(one["template"]) for one in found}
    return {"default": found} if isinstance(found, str) else {}


def _message(index: int, message: Message) -> dict[str, Any]:
    """A message as templates know it."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise ValueError(f"messages[{index}]: expected a mapping with role and content, got {message!r}")
    kept: dict[str, Any] = _plain({k: v for k, v in message.items() if v is not None}, f"messages[{index}]")
    thoughts = next((kept[key] for key in REASONING if key in kept), None)
    return kept if thoughts is None else {"thinking": thoughts, **kept, "reasoning_content": thoughts}


def _plain(value: Any, where: str) -> Any:
    """A copy in JSON's types: an object of another type could be called by a template."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: expected what JSON can hold: {error}") from error


def _refuse(message: str) -> None:
    from jinja2.exceptions import TemplateError

    raise TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None,
             sort_keys: bool = False) -> str:  # fmt: skip
    """jinja2's own filter would escape what HTML does not like."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


@functools.lru_cache(maxsize=16)
def _compiled(source: str) -> Any:
    """The template in a sandbox that gives access to no attribute of Python's and changes no value."""
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what an assistant said, for training; the text is what stands in it."""

        tags = {"generation"}  # noqa: RUF012  (as the base class declares it)

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
    return environment.from_string(source)
