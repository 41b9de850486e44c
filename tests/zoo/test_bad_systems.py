"""Systems that cannot be: refused when they are described, with the path in the YAML."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import zoo
from zoo.cli import main
from zoo.spec import SpecError

LAYER = "backbone.layers[0].block.ffn"
RECURRENT = {"router": {"type": "top_k", "gate": {"type": "recurrent", "state": 4}}}
RESIDUAL = {"router": {"type": "top_k", "gate": {"type": "residual"}}}
BACKWARDS = {"start": 0.5, "end": 2.0}


def block(**keys: Any) -> dict[str, Any]:
    plain = {"type": "moe", "routed": 4, "experts": {"type": "swiglu", "hidden": 8}, "router": {"type": "top_k"}}
    return {"block": {"type": "sequential", "attention": {"heads": 2}, "ffn": {**plain, **keys}}}


def model(*layers: dict[str, Any], **backbone: Any) -> dict[str, Any]:
    return {
        "type": "unified", "backbone": {"dim": 16, "layers": list(layers), **backbone},
        "modalities": {"text": {"type": "text", "length": 16}},
    }  # fmt: skip


def router(kind: str, **keys: Any) -> dict[str, Any]:
    return block(router={"type": kind, **keys})


def tau(value: float) -> dict[str, Any]:
    return block(null_experts={"copy": 1}, policy=[{"type": "capacity", "tau": value}])


SINGLE: list[tuple[dict[str, Any], str]] = [
    (router("dense_to_sparse", temperature=BACKWARDS), "router.temperature.end: got 2.0"),
    (router("dense_to_sparse", hard=10), "router.hard: got 10, expected at least 5000"),
    (router("dense_to_sparse", noise=0.5, noise_end=1.0), "router.noise_end: got 1.0"),
    (router("top_k", gate={"type": "activation", "temperature": BACKWARDS}), "router.gate.temperature.end: got 2.0"),
    (block(balance=[{"type": "switch", "anneal": -5, "final": 0.1}]), "balance[0].anneal: got -5"),
    (tau(0.0), "policy[0].tau: got 0.0, expected more than 0 and at most 1"),
    (tau(1.5), "policy[0].tau: got 1.5, expected more than 0 and at most 1"),
    (block(balance=[{"type": "switch", "null_weight": 0.0}]), "balance[0].null_weight: got 0.0"),
    (router("top_p", p=0.0), "router.p: got 0.0, expected 0 < p <= 1"),
    (router("top_p", p=1.1), "router.p: got 1.1, expected 0 < p <= 1"),
    (router("top_k", groups=3), "router.groups: 4 experts do not divide into 3 equal groups"),
    (router("top_k", groups=2, k=3, equal_groups=True), "router.k: got 3, expected a multiple of 2"),
    (block(balance=[{"type": "switch", "groups": 3}]), "balance[0].groups: 4 experts do not divide into 3"),
    (block(experts={"type": "latent", "hidden": 4, "latent": 4, "group": 3}), "experts.group: 4 experts do not"),
]
PAIRS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (RECURRENT, {**RECURRENT, "routed": 6}, "it looks back at a layer of 4 experts from one of 6"),
    (RESIDUAL, {**RESIDUAL, "routed": 6}, "it looks back at a layer of 4 experts from one of 6"),
    (RESIDUAL, {**RESIDUAL, "null_experts": {"zero": 1}}, "it looks back at a layer of 4 experts from one of 5"),
    ({}, RESIDUAL, "it reads what its kind leaves in the MoE layer before"),
    ({}, RECURRENT, "it reads what its kind leaves in the MoE layer before"),
]


def refused(make: Callable[[], Any]) -> str:
    with pytest.raises(SpecError) as error:
        make()
    return str(error.value)


@pytest.mark.parametrize(("layer", "said"), SINGLE)
def test_a_layer_that_cannot_be(layer: dict[str, Any], said: str) -> None:
    assert refused(lambda: zoo.create(model(layer))).startswith(f"{LAYER}.{said}")


@pytest.mark.parametrize(("first", "second", "said"), PAIRS)
def test_a_layer_that_cannot_follow_another(first: dict[str, Any], second: dict[str, Any], said: str) -> None:
    message = refused(lambda: zoo.create(model(block(**first), block(**second))))
    assert message.startswith("backbone.layers[1].block.ffn.router.gate.type: " + said)


def test_lora_on_a_map_that_does_not_exist() -> None:
    adapter = {"type": "lora_experts", "counts": [2], "targets": ["attention.nothing"]}
    message = refused(lambda: zoo.create(model(block(), adapter=adapter)))
    assert message.startswith("backbone.adapter.targets[0]: no map 'attention.nothing' in any block; there are")


def test_the_command_names_the_path_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump({"card": {"system": "x", "summary": "x"}, "spec": model(router("top_p", p=2.0))}))
    assert main(["show", str(path)]) != 0
    assert f"spec.{LAYER}.router.p: got 2.0, expected 0 < p <= 1" in capsys.readouterr().err
