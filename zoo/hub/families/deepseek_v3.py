"""DeepSeek-V3 and R1: latent attention, and a sigmoid router that a bias balances (arXiv 2412.19437)."""

from __future__ import annotations

from zoo.hub.conversion import fine, read, write
from zoo.hub.conversion.family import FUSED, SEPARATE, Family
from zoo.hub.conversion.fields import Fields
from zoo.hub.conversion.language import Language
from zoo.hub.conversion.latent import UNUSED, read_latent, read_positions, write_latent
from zoo.hub.conversion.surplus import PREDICTORS, predictors, read_predictors
from zoo.spec import Plain

DEFAULT = fine.Defaults(
    routed=256, chosen=8, shared=1, width=2048, dense=18432, first=3, groups=8, top_groups=4, normalize=True, scale=2.5
)


def spec(fields: Fields) -> Language:
    """`rope_interleave` says that neighbouring dimensions turn together."""
    read_predictors(fields)
    attention, router = read_latent(fields), fine.read_sigmoid(fields, DEFAULT)
    pairs = "adjacent" if fields.get("rope_interleave", bool, True) else "halves"
    layers = fine.read_layers(fields, fields.count(), router, DEFAULT)
    blocks = [read.sequential(attention, layer) for layer in layers]
    return read.language(fields, blocks, ids=(0, 1, None), positions=read_positions(fields, pairs))


def config(model: Language) -> Plain:
    """The fields of DeepSeek-V3."""
    return {
        **write.write_language(model),
        **write_latent(model),
        **fine.write_layers(model),
        **fine.write_sigmoid(model),
        "rope_interleave": model.trunk["rope"]["pairs"] == "adjacent",
        PREDICTORS: 0,
    }


FAMILY = Family(
    name="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    spec=spec,
    config=config,
    rules=fine.pieces,
    layouts=(SEPARATE, FUSED),
    harmless=fine.SPLIT | UNUSED,
    unread=predictors,
)
