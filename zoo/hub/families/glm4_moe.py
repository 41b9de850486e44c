"""GLM-4.5 to 4.7: experts of DeepSeek-V3 under attention of which half of each head turns (arXiv 2508.06471)."""

from __future__ import annotations

from zoo.hub.conversion import fine, read, write
from zoo.hub.conversion.family import FUSED, SEPARATE, Family
from zoo.hub.conversion.fields import Fields
from zoo.hub.conversion.language import Language
from zoo.hub.conversion.rotary import rotary
from zoo.hub.conversion.surplus import PREDICTORS, predictors, read_predictors
from zoo.spec import Plain

DEFAULT = fine.Defaults(routed=128, chosen=8, shared=1, width=1408, dense=10944, first=1, normalize=True)


def spec(fields: Fields) -> Language:
    """Norms over heads where `use_qk_norm` says; the output map never has a bias."""
    read_predictors(fields)
    positions = rotary(fields, partial=0.5)
    attention = read.grouped(fields, bias=fields.get("attention_bias", bool, False), kv_heads=8)
    attention |= {"qk_norm": fields.get("use_qk_norm", bool, False), "partial": positions.partial}
    layers = fine.read_layers(fields, fields.count(), fine.read_sigmoid(fields, DEFAULT), DEFAULT)
    blocks = [read.sequential(attention, layer) for layer in layers]
    return read.language(fields, blocks, eps=1e-5, positions=positions)


def config(model: Language) -> Plain:
    """The fields of GLM-4.5. The share that turns is written even where it is all."""
    attention = write.attention(model)
    fields = write.write_language(model, partial=attention["partial"])
    share = {"partial_rotary_factor": attention["partial"]}
    return {
        **fields,
        **share,
        "rope_parameters": {**fields["rope_parameters"], **share},
        **write.write_grouped(model),
        **fine.write_layers(model),
        **fine.write_sigmoid(model),
        "attention_bias": attention["bias"],
        "use_qk_norm": attention["qk_norm"],
        PREDICTORS: 0,
    }


FAMILY = Family(
    name="glm4_moe",
    architecture="Glm4MoeForCausalLM",
    spec=spec,
    config=config,
    rules=fine.pieces,
    layouts=(SEPARATE, FUSED),
    harmless=fine.SPLIT,
    unread=predictors,
)
