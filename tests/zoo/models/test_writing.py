"""Generation and losses beside transformers, on small random models with the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from zoo.models.unified import Unified

VOCAB, DIM, HIDDEN = 40, 32, 48
PAD = 0


def theirs(kind: str) -> Any:
    """A random model of transformers."""
    import transformers

    config = {"hidden_size": DIM, "intermediate_size": HIDDEN, "vocab_size": VOCAB, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}
    config |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": PAD, "initializer_range": 0.3}
    torch.manual_seed(0)
    if kind == "llama":
        model: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config, rms_norm_eps=1e-5))
    else:
        model = transformers.MixtralForCausalLM(
            transformers.MixtralConfig(**config, rms_norm_eps=1e-5, num_local_experts=4, num_experts_per_tok=2)
        )
    return model.eval()


def ours(model: Any, kind: str) -> Unified:
    """The same model here."""
    dense = {"type": "dense", "hidden": HIDDEN}
    moe = {
        "type": "moe", "routed": 4, "experts": {"type": "swiglu", "hidden": HIDDEN}, "router": {"type": "top_k", "k": 2}
    }  # fmt: skip
    block = {"type": "sequential", "attention": {"heads": 4, "kv_heads": 2}, "ffn": dense if kind == "llama" else moe}
    theta = model.config.rope_parameters["rope_theta"]
    text = {"type": "text", "tie": False, "tokenizer": {"type": "files", "vocab_size": VOCAB, "eos": [2], "pad": PAD}}
    built = zoo.create(
        {
            "type": "unified",
            "backbone": {
                "dim": DIM, "norm_eps": 1e-5, "rope": {"theta": theta}, "layers": [{"repeat": 2, "block": block}]
            },
            "modalities": {"text": text},
        }
    )  # fmt: skip
    state = dict(weights(model.state_dict(), kind))
    built.load_state_dict({k: v for k, v in built.state_dict().items() if k not in state} | state)
    assert len(state) == sum(1 for _ in built.parameters())
    return built.eval()


def weights(state: dict[str, Tensor], kind: str) -> Iterator[tuple[str, Tensor]]:
    yield "modalities.text.embedding.weight", state["model.embed_tokens.weight"]
    yield "modalities.text.head.weight", state["lm_head.weight"]
    yield "backbone.norm.weight", state["model.norm.weight"]
    for i in range(2):
        here, there = f"backbone.blocks.{i}.", f"model.layers.{i}."
        yield f"{here}attention_norm.weight", state[f"{there}input_layernorm.weight"]
        yield f"{here}ffn_norm.weight", state[f"{there}post_attention_layernorm.weight"]
        for name in "qkvo":
            yield f"{here}attention.{name}.weight", state[f"{there}self_attn.{name}_proj.weight"]
        mlp = f"{there}mlp."
        if kind == "llama":
            gate, up = state[f"{mlp}gate_proj.weight"], state[f"{mlp}up_proj.weight"]
            yield f"{here}ffn.gate_up", torch.cat([gate, up])
            yield f"{here}ffn.down", state[f"{mlp}down_proj.weight"]
        else:
            yield f"{here}ffn.experts.gate_up", state[f"{mlp}experts.gate_up_proj"]
            yield f"{here}ffn.experts.down", state[f"{mlp}experts.down_proj"]
            yield f"{here}ffn.router.gate.weight", state[f"{mlp}gate.weight"]


@pytest.fixture(scope="module", params=["llama", "mixtral"])
def pair(request: pytest.FixtureRequest) -> tuple[Any, Unified]:
    """A model of transformers and ours with its weights."""
    peer = theirs(request.param)
    return peer, ours(peer, request.param)


IDS = torch.randint(3, VOCAB, (3, 9), generator=torch.Generator().manual_seed(1))
MASK = torch.ones_like(IDS)
MASK[1, :4] = 0
MASK[2, :8] = 0
PADDED = IDS.masked_fill(MASK == 0, PAD)
MANY = tuple(range(3, 9))  # so many ends that rows stop at different places


@pytest.mark.parametrize("eos", [(2,), MANY])
@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_ids_are_those_of_transformers(
    pair: tuple[Any, Unified], eos: tuple[int, ...], chunk: int | None, penalty: float
) -> None:
    peer, model = pair
    settings: dict[str, Any] = {"max_new_tokens": 16, "repetition_penalty": penalty}
    if penalty == 1:
        given = (PADDED, MASK)
    else:  # they count padding as said before, so only rows without it can be compared
        given = (IDS, torch.ones_like(IDS))
    expected = peer.generate(
        given[0], attention_mask=given[1], do_sample=False, eos_token_id=list(eos), pad_token_id=PAD, **settings
    )
    found = model.generate(given[0], attention_mask=given[1], temperature=0, eos=eos, prefill_chunk=chunk, **settings)
    assert torch.equal(found, expected)
    if eos == MANY and penalty == 1:
        ends = (found[:, 9:] == PAD).sum(1)
        assert len(set(ends.tolist())) > 1


def test_a_stop_ends_only_its_row(pair: tuple[Any, Unified]) -> None:
    model = pair[1]
    whole = model.generate(PADDED, attention_mask=MASK, max_new_tokens=8, temperature=0, eos=())
    first = int(whole[0, 11])
    found = model.generate(PADDED, attention_mask=MASK, max_new_tokens=8, temperature=0, eos=first)
    assert found[0, 9:].tolist().index(first) <= 2
    for row, full in zip(found, whole, strict=True):
        new = row[9:].tolist()
        keep = new.index(first) + 1 if first in new else len(new)
        assert new[:keep] == full[9 : 9 + keep].tolist() and set(new[keep:]) <= {PAD}


@pytest.mark.parametrize("keys", [{"temperature": 0.9, "top_k": 4}, {"temperature": 1.3, "top_p": 0.7, "min_p": 0.05}])
def test_samples_are_distributed_as_those_of_transformers(pair: tuple[Any, Unified], keys: dict[str, Any]) -> None:
    peer, model = pair
    rows = IDS[:1].expand(2000, -1)
    torch.manual_seed(0)
    plain = {"top_k": 0} | keys
    expected = peer.generate(rows, do_sample=True, max_new_tokens=1, attention_mask=torch.ones_like(rows), **plain)
    found = model.generate(rows, seed=3, max_new_tokens=1, **keys)
    share = [ids[:, -1].bincount(minlength=VOCAB) / len(rows) for ids in (expected, found)]
    torch.testing.assert_close(share[0], share[1], atol=0.05, rtol=0)
    assert torch.equal(model.generate(rows[:5], seed=3, max_new_tokens=4, **keys),
                       model.generate(rows[:5], seed=3, max_new_tokens=4, **keys))  # fmt: skip


def test_losses_and_gradients_are_those_of_transformers(pair: tuple[Any, Unified]) -> None:
    peer, model = pair
    labels = IDS.masked_fill(MASK == 0, -100)
    expected = peer(PADDED, attention_mask=MASK, labels=labels)
    found = model(PADDED, attention_mask=MASK, labels=labels)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-5, atol=1e-6)
    real = MASK.bool()
    torch.testing.assert_close(found.logits[real], expected.logits[real], rtol=1e-4, atol=1e-5)
    a, b = model.modalities["text"].head.weight, peer.lm_head.weight  # type: ignore[union-attr]
    torch.testing.assert_close(
        torch.autograd.grad(found.loss, a)[0], torch.autograd.grad(expected.loss, b)[0], rtol=1e-4, atol=1e-6
    )


def test_logits_of_a_call_with_labels_come_when_they_are_read(pair: tuple[Any, Unified]) -> None:
    model = pair[1]
    with_labels, without = model(IDS, labels=IDS), model(IDS)
    assert with_labels.computed is None and without.computed is not None
    torch.testing.assert_close(with_labels.logits, without.logits)
    assert with_labels.logits is with_labels.logits and with_labels.logits.requires_grad


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.generate(IDS, attention_mask=MASK.flip(1)), "a row ends with padding; expected rows padded on"),
        (lambda m: m.generate(IDS, attention_mask=MASK[:, 1:]), r"attention_mask: got shape \[3, 8\], expected \[3, 9"),
        (lambda m: m.generate(IDS[:, :0]), r"got shape \[3, 0\], expected \[batch, length\]"),
        (lambda m: m.generate(IDS[:0]), r"got shape \[0, 9\], expected \[batch, length\]"),
        (lambda m: m.generate("a", attention_mask=MASK), "attention_mask: goes with ids"),
        (lambda m: m.generate("a"), "was not loaded from a folder with tokenizer files"),
        (lambda m: m(IDS, labels=IDS[:1]), r"labels: got torch.int64 \[1, 9\], expected integers \[3, 9"),
    ],
)
def test_wrong_calls_say_so(pair: tuple[Any, Unified], call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(pair[1])


def test_a_prompt_is_text_or_ids(pair: tuple[Any, Unified]) -> None:
    mixed: Any = ["a", [3, 4]]
    with pytest.raises(TypeError, match=r"prompt: expected a string, a list of strings, or ids"):
        pair[1].generate(mixed)


def test_ids_may_be_lists_and_arrays(pair: tuple[Any, Unified]) -> None:
    model, how = pair[1], {"max_new_tokens": 3, "temperature": 0.0, "eos": ()}
    expected = model.generate(PADDED, attention_mask=MASK, **how)
    for ids, mask in ((PADDED.tolist(), MASK.tolist()), (PADDED.numpy(), MASK.bool().numpy())):
        assert torch.equal(model.generate(ids, attention_mask=mask, **how), expected)
    with pytest.raises(ValueError, match="prompt: rows differ in length"):
        model.generate([[3, 4], [3]])


def test_hidden_states_are_those_of_transformers(pair: tuple[Any, Unified]) -> None:
    peer, model = pair
    expected = peer(IDS, output_hidden_states=True).hidden_states
    found = model(IDS, output_hidden_states=True).hidden_states
    assert len(found) == len(expected) == 3
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_streamed_ids_may_be_trained_on(pair: tuple[Any, Unified]) -> None:
    model = pair[1]
    ids = torch.stack(list(model.generate(IDS, stream=True, max_new_tokens=3, eos=())), dim=1)
    model(ids, labels=ids).loss.backward()
    one = next(iter(model.generate(IDS, stream=True, max_new_tokens=3)))
    assert not one.is_inference()
    model.zero_grad(set_to_none=True)


def test_a_setting_that_there_is_not_is_named(pair: tuple[Any, Unified]) -> None:
    with pytest.raises(TypeError, match=r"no setting 'temprature' of generation \(did you mean 'temperature'\?\)"):
        pair[1].generate(IDS, temprature=1)
