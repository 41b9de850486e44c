"""Every supported family against transformers: logits, routing, decoding, both layouts, and the way back."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

import zoo
from zoo.hub.conversion.checkpoint import describe, full
from zoo.hub.conversion.family import FUSED
from zoo.hub.families import NAMES, family
from zoo.hub.parity import choices_of, compare
from zoo.spec import dump

RELATIVE = 1e-5  # of the largest logit


def assert_close(ours: Tensor, theirs: Tensor, mask: Tensor) -> None:
    difference = (ours - theirs)[mask.bool()].abs().max()
    scale = theirs[mask.bool()].abs().max()
    assert scale > 0.1 and difference <= RELATIVE * scale, f"{float(difference / scale):.2e} of the scale"


def chosen_by(peer: Any, run: Callable[[], Any]) -> list[Tensor]:
    """[tokens, k] the experts that each router of the peer chose, in the order of layers."""
    with choices_of(peer) as found:
        run()
    return found


def stored(folder: Path) -> dict[str, tuple[Any, ...]]:
    """name -> (dtype, shape, bytes) of every tensor of a folder."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(str(path), framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                value = opened.get_tensor(name)
                found[name] = (value.dtype, tuple(value.shape), value.contiguous().view(torch.uint8).numpy().tobytes())
    return found


def used(pair: Any, folder: Path | None = None) -> dict[str, tuple[Any, ...]]:
    """What is stored in the folder of the peer, without tensors that it saves and need not read."""
    found = stored(pair.folder if folder is None else folder)
    return {name: value for name, value in found.items() if not pair.case.unused(name)}


def test_every_family_has_a_table_here() -> None:
    assert {path.stem for path in (Path(__file__).parent / "families").glob("*.py")} == set(NAMES)


def test_every_family_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", page, flags=re.M)) == set(NAMES)


def test_logits_with_and_without_padding(pair: Any, batch: tuple[Tensor, Tensor]) -> None:
    ids, mask = batch
    with torch.no_grad():
        assert_close(pair.ours(ids).logits, pair.whole, torch.ones_like(mask))
        assert_close(pair.ours(ids, attention_mask=mask).logits, pair.padded, mask)


def test_routers_choose_the_same_experts(pair: Any, batch: tuple[Tensor, Tensor], run: Any) -> None:
    ids, mask = batch
    with torch.no_grad():
        records = pair.ours(ids, attention_mask=mask).records
    theirs = chosen_by(pair.peer, lambda: run(pair.peer, ids, mask))
    assert len(records) == len(theirs)
    real = mask.flatten().bool()
    for record, expert in zip(records, theirs, strict=True):
        assert torch.equal(record.routing.expert[real].sort(-1).values, expert[real].sort(-1).values)


def test_load_check_compares_the_folder(pair: Any) -> None:
    found = compare(pair.folder)
    assert found.problems() == [] and found.choices is not None
    assert (found.choices > 0) == bool(pair.ours.moe_layers())


def test_greedy_decoding_with_a_cache(pair: Any, batch: tuple[Tensor, Tensor]) -> None:
    ids, mask = batch
    asked = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, **getattr(pair.case.table, "GENERATE", {})}
    with torch.no_grad():
        theirs = pair.peer.generate(ids, attention_mask=mask, **asked)
        cache, drawn, new, seen = pair.ours.new_cache(), ids, ids, mask
        for _ in range(6):
            logits = pair.ours(new, attention_mask=seen, cache=cache).logits[:, -1]
            new = logits.argmax(-1, keepdim=True)
            drawn, seen = torch.cat([drawn, new], dim=1), torch.cat([seen, torch.ones_like(new)], dim=1)
    assert torch.equal(drawn, theirs)
    settings = {"attention_mask": mask, "temperature": 0, "max_new_tokens": 6, "eos": ()}
    assert torch.equal(pair.ours.generate(ids, **settings), theirs)
    by_length = getattr(pair.ours.spec.backbone.rope.scaling, "by_length", False)
    if not by_length:  # such positions turn by the longest row so far, which a part of a prompt does not know
        assert torch.equal(pair.ours.generate(ids, prefill_chunk=8, **settings), theirs)


def test_the_export_is_the_checkpoint_again(pair: Any, batch: tuple[Tensor, Tensor], run: Any, tmp_path: Path) -> None:
    import transformers

    folder = zoo.export(pair.ours, tmp_path / "again")
    assert stored(folder) == used(pair)
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert content["model_type"] == pair.case.family
    assert describe(content, folder / "config.json")[1] == pair.ours.spec
    getattr(pair.case.table, "complete", lambda folder: None)(folder)
    peer, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert all(pair.case.unused(name) for name in report["missing_keys"])
    assert not report["unexpected_keys"] and not report["mismatched_keys"]
    assert_close(run(peer.eval(), *batch), pair.padded, batch[1])


def test_every_element_is_covered_once(pair: Any) -> None:
    found, state = family(pair.case.family), pair.ours.state_dict()
    for layout in found.layouts:
        ours = {name: torch.zeros(value.shape) for name, value in state.items()}
        theirs: dict[str, Tensor] = {}
        for piece in found.rules(full(pair.ours.spec), layout):
            whole = theirs.setdefault(piece.theirs, torch.zeros(piece.form(state)))
            piece.within(whole).add_(1)
            if not piece.again:
                piece.view(ours).add_(1)
        assert all(bool((value == 1).all()) for value in (*ours.values(), *theirs.values()))


def test_saved_as_ours_it_is_the_same_model(pair: Any, tmp_path: Path) -> None:
    again = zoo.load(zoo.save(pair.ours, tmp_path / "ours"))
    assert again.spec == pair.ours.spec and dump(again.spec) == dump(pair.ours.spec)
    state = again.state_dict()
    assert all(torch.equal(state[name], value) for name, value in pair.ours.state_dict().items())
    assert stored(zoo.export(again, tmp_path / "again")) == used(pair)


def test_stacked_experts_on_disk(pair: Any, tmp_path: Path) -> None:
    if FUSED not in family(pair.case.family).layouts:
        return
    pair.peer.save_pretrained(tmp_path / "stacked", save_original_format=False)
    assert stored(tmp_path / "stacked").keys() != stored(pair.folder).keys()
    again = zoo.load(tmp_path / "stacked")
    assert again.spec == pair.ours.spec
    state = again.state_dict()
    assert all(torch.equal(state[name], value) for name, value in pair.ours.state_dict().items())
    folder = zoo.export(again, tmp_path / "again", format="hf-stacked")
    assert stored(folder) == used(pair, tmp_path / "stacked")
