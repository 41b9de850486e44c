"""DeepSeek-V2: latent attention, and groups of experts of which a token may choose from a few (arXiv 2405.04434)."""

from __future__ import annotations

from zoo.hub.conversion import fine, read, write
from zoo.hub.conversion.family import FUSED, SEPARATE, Family
from zoo.hub.conversion.fields import Fields
from zoo.hub.conversion.language import Language, MismatchError, of_type
from zoo.hub.conversion.latent import UNUSED, read_latent, read_positions, write_latent
from zoo.spec import Plain

DEFAULT = fine.Defaults(routed=64, shared=2, width=1407, dense=11008)
GREEDY, LIMITED = "greedy", "group_limited_greedy"


def router(fields: Fields) -> Plain:
    """Weights of the softmax over all experts. Groups count only where `topk_method` says so; a group ranks by its best
    expert. Weights divided by their sum over the chosen are refused: the publisher's code leaves the factor away there,
    transformers does not divide at all, and no release has it."""
    fields.only("norm_topk_prob", False)
    fields.only("scoring_func", "softmax")
    fields.only("topk_method", GREEDY, LIMITED)
    plain = fine.read_groups(fields, DEFAULT) | {"normalize": "all"}
    if fields.get("topk_method", str, GREEDY) == GREEDY:
        plain = {key: value for key, value in plain.items() if key not in ("groups", "top_groups")}
    return plain


def spec(fields: Fields) -> Language:
    """Neighbouring dimensions turn together."""
    fields.only("mlp_bias", False)
    layers = fine.read_layers(fields, fields.count(), router(fields), DEFAULT)
    blocks = [read.sequential(read_latent(fields), layer) for layer in layers]
    return read.language(fields, blocks, ids=(1, 2, None), positions=read_positions(fields, "adjacent"))


def config(model: Language) -> Plain:
    """The fields of DeepSeek-V2."""
    chosen = of_type(write.mixture(model)["router"], "ffn.router", "top_k")
    if chosen["normalize"] != "all":
        raise MismatchError(f"ffn.router.normalize: is {chosen['normalize']!r}, expected 'all'")
    return {
        **write.write_language(model),
        **write_latent(model),
        **fine.write_layers(model),
        **fine.write_groups(chosen),
        "scoring_func": "softmax",
        "topk_method": GREEDY if chosen["groups"] == 1 else LIMITED,
        "norm_topk_prob": False,
    }


FAMILY = Family(
    name="deepseek_v2",
    architecture="DeepseekV2ForCausalLM",
    spec=spec,
    config=config,
    rules=fine.pieces,
    layouts=(SEPARATE, FUSED),
    harmless=fine.SPLIT | UNUSED,
)
