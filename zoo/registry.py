"""Names to parts: (kind, type) -> "module:object", imported on first use.

Parts never import this module. A third-party package registers by entry points of the group `moezoo.parts`, named
`kind.type` with the value `module:Class`; nothing of it is imported before its name is asked for.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import sys
from importlib import metadata
from typing import Any

GROUP = "moezoo.parts"

TABLE: dict[str, dict[str, str]] = {
    "router": {
        "top_k": "zoo.moe.routers.top_k:TopKSpec",
        "top_p": "zoo.moe.routers.top_p:TopPSpec",
        "expert_choice": "zoo.moe.routers.expert_choice:ExpertChoiceSpec",
        "sequence_choice": "zoo.moe.routers.sequence_choice:SequenceChoiceSpec",
        "sparse_mixer": "zoo.moe.routers.sparse_mixer:SparseMixerSpec",
        "dense_to_sparse": "zoo.moe.routers.dense_to_sparse:DenseToSparseSpec",
    },
    "gate": {
        "linear": "zoo.moe.gates.linear:LinearGateSpec",
        "mlp": "zoo.moe.gates.mlp:MLPGateSpec",
        "residual": "zoo.moe.gates.residual:ResidualGateSpec",
        "recurrent": "zoo.moe.gates.recurrent:RecurrentGateSpec",
        "activation": "zoo.moe.gates.activation:ActivationGateSpec",
        "warm_up": "zoo.moe.gates.warm_up:WarmUpGateSpec",
        "pre_gated": "zoo.backbone.pre_gate:PreGateSpec",
        "gumbel": "zoo.moe.gates.gumbel:GumbelGateSpec",
    },
    "policy": {
        "capacity": "zoo.moe.policies.capacity:CapacitySpec",
        "reroute": "zoo.moe.policies.reroute:RerouteSpec",
    },
    "expert": {
        "swiglu": "zoo.moe.experts.ffn:SwiGLUSpec",
        "gelu": "zoo.moe.experts.ffn:GELUSpec",
        "latent": "zoo.moe.experts.latent:LatentSpec",
        "union": "zoo.moe.experts.union:UnionSpec",
        "lora": "zoo.moe.experts.lora:LoraSpec",
    },
    "balance": {
        "switch": "zoo.moe.balance.switch:SwitchSpec",
        "z_loss": "zoo.moe.balance.z_loss:ZLossSpec",
        "bias": "zoo.moe.balance.bias:BiasSpec",
        "entropy": "zoo.moe.balance.entropy:EntropySpec",
    },
    "dispatch": {
        "local": "zoo.moe.dispatch.local:LocalSpec",
    },
    "ffn": {
        "dense": "zoo.moe.feed_forward:DenseSpec",
        "moe": "zoo.moe.spec:MoESpec",
    },
    "block": {
        "sequential": "zoo.backbone.blocks.sequential:SequentialSpec",
        "adaln": "zoo.backbone.blocks.adaln:AdaLNSpec",
        "shortcut": "zoo.backbone.blocks.shortcut:ShortcutSpec",
        "attention_experts": "zoo.backbone.blocks.attention_experts:AttentionExpertsSpec",
        "double_gating": "zoo.backbone.blocks.double_gating:DoubleGatingSpec",
    },
    "attention": {
        "grouped_query": "zoo.backbone.attention.grouped_query:GroupedQuerySpec",
        "latent": "zoo.backbone.attention.latent:LatentSpec",
        "selective": "zoo.backbone.attention.selective:SelectiveSpec",
        "lightning": "zoo.backbone.attention.lightning:LightningSpec",
    },
    "rope_scaling": {
        "linear": "zoo.backbone.rope_scaling.stretched:LinearSpec",
        "ntk": "zoo.backbone.rope_scaling.stretched:NTKSpec",
        "dynamic": "zoo.backbone.rope_scaling.stretched:DynamicSpec",
        "yarn": "zoo.backbone.rope_scaling.yarn:YarnSpec",
        "llama3": "zoo.backbone.rope_scaling.llama3:Llama3Spec",
        "longrope": "zoo.backbone.rope_scaling.longrope:LongRopeSpec",
    },
    "adapter": {
        "lora_experts": "zoo.backbone.adapters.lora_experts:LoraExpertsSpec",
    },
    "surgery": {
        "add_lora_experts": "zoo.surgery.lora_experts:AddLoraExpertsSpec",
        "merge_lora_experts": "zoo.surgery.lora_experts:MergeLoraExpertsSpec",
        "copy": "zoo.surgery.copy:CopySpec",
        "merge": "zoo.surgery.merge:MergeSpec",
        "spawn": "zoo.surgery.spawn:SpawnSpec",
    },
    "model": {
        "unified": "zoo.models.unified:UnifiedSpec",
    },
    "modality": {
        "text": "modalities.text.spec:TextSpec",
        "vision": "modalities.vision.spec:VisionSpec",
        "speech": "modalities.speech.spec:SpeechSpec",
        "music": "modalities.music.spec:MusicSpec",
        "diffusion": "modalities.diffusion.spec:DiffusionSpec",
        "time_series": "modalities.time_series.spec:TimeSeriesSpec",
    },
    "tokenizer": {
        "bytes": "modalities.text.tokenizer:BytesSpec",
        "hugging_face": "modalities.text.tokenizer:HuggingFaceSpec",
        "files": "modalities.text.files_tokenizer:FilesSpec",
    },
    "tower": {
        "patch": "modalities.vision.towers:PatchTowerSpec",
        "timm": "modalities.vision.towers:TimmTowerSpec",
    },
    "objective": {
        "flow": "modalities.diffusion.flow:FlowSpec",
        "ddpm": "modalities.diffusion.ddpm:DdpmSpec",
    },
    "autoencoder": {
        "pixels": "modalities.diffusion.autoencoders:PixelsSpec",
        "diffusers": "modalities.diffusion.autoencoders:DiffusersSpec",
    },
    "music_representation": {
        "notes": "modalities.music.spec:NotesSpec",
        "codec": "modalities.music.spec:CodecMusicSpec",
    },
    "codec": {
        "log_mel_rvq": "modalities.codecs.spec:LogMelRVQSpec",
        "dac": "modalities.codecs.spec:DacSpec",
        "encodec": "modalities.codecs.spec:EncodecSpec",
        "mimi": "modalities.codecs.spec:MimiSpec",
    },
    "claim": {  # checks of what entries promise; they train, so they live above the zoo, which never imports them
        "band": "training.claims.band:BandSpec",
        "load_balanced": "training.claims.band:LoadBalancedSpec",
        "monotone": "training.claims.sweep:MonotoneSpec",
        "ablation": "training.claims.sweep:AblationSpec",
        "milder": "training.claims.sweep:MilderSpec",
        "steadier": "training.claims.sweep:SteadierSpec",
        "loss_not_worse": "training.claims.losses:LossNotWorseSpec",
        "loss_better": "training.claims.losses:LossBetterSpec",
        "less_redundant": "training.claims.masking:LessRedundantSpec",
        "phases": "training.claims.phases:PhasesSpec",
        "partition_found": "training.claims.partition:PartitionSpec",
        "more_experts_on_hard_tokens": "training.claims.tokens:HardTokensSpec",
        "groups_equal": "training.claims.tokens:GroupsEqualSpec",
        "layers_faster": "training.claims.speed:LayersFasterSpec",
        "null_rows_pay": "training.claims.null_rows:NullRowsPaySpec",
        "capacity_order": "training.claims.capacity:CapacityOrderSpec",
        "capacity_quality": "training.claims.capacity:CapacityQualitySpec",
        "capacity_speed": "training.claims.capacity:CapacitySpeedSpec",
        "adapter_redundancy": "training.claims.adapting:AdapterRedundancySpec",
        "adapter_better": "training.claims.adapting:AdapterBetterSpec",
        "adapter_pruning": "training.claims.adapting:AdapterPruningSpec",
        "hidden_states": "training.claims.states:HiddenStatesSpec",
        "gradient_ratio": "training.claims.states:GradientRatioSpec",
        "rate_transfer": "training.claims.transfer:RateTransferSpec",
        "distilled_better": "training.claims.pre_gated:DistilledBetterSpec",
        "fewer_experts": "training.claims.pre_gated:FewerExpertsSpec",
        "cache_hits": "training.claims.pre_gated:CacheHitsSpec",
        "specialisation": "training.claims.domains:SpecialisationSpec",
        "spikes_left_out": "training.claims.spikes:SpikesLeftOutSpec",
        "domains_even": "training.claims.domains:DomainsEvenSpec",
        "domains_beside": "training.claims.domains:DomainsBesideSpec",
    },
    "data": {
        "tinyshakespeare": "modalities.text.data:TinyShakespeareSpec",
        "docstrings": "modalities.text.data:DocstringsSpec",
        "text_files": "modalities.text.data:TextFilesSpec",
        "sklearn_digits": "modalities.vision.data:SklearnDigitsSpec",
        "cifar10": "modalities.vision.data:Cifar10Spec",
        "image_files": "modalities.vision.data:ImageFilesSpec",
        "fsdd": "modalities.speech.data:FSDDSpec",
        "spoken_digits": "modalities.speech.data:SpokenDigitsSpec",
        "speech_files": "modalities.speech.data:SpeechFilesSpec",
        "jsb": "modalities.music.data:ChoralesSpec",
        "tunes": "modalities.music.data:TunesSpec",
        "note_files": "modalities.music.data:NoteFilesSpec",
        "music_files": "modalities.music.data:MusicFilesSpec",
        "ett_h1": "modalities.time_series.data:ETTh1Spec",
        "el_nino": "modalities.time_series.data:ElNinoSpec",
        "series_files": "modalities.time_series.data:SeriesFilesSpec",
    },
}


class RegistryError(ValueError):
    """An unknown or clashing name."""


def nearest(name: str, choices: list[str]) -> str:
    """ " (did you mean 'x'?)" for the nearest of `choices`, or nothing."""
    close = difflib.get_close_matches(str(name), choices, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


@functools.cache
def _plugins() -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for point in metadata.entry_points(group=GROUP):
        kind, _, name = point.name.partition(".")
        if not name or kind not in TABLE:
            raise RegistryError(f"plug-in {point.name!r}: expected 'kind.type' with a kind of {sorted(TABLE)}")
        if name in TABLE[kind] or name in found.get(kind, {}):
            raise RegistryError(f"plug-in {point.name!r} ({point.value}): the name is taken by another part")
        found.setdefault(kind, {})[name] = point.value
    return found


def kinds() -> list[str]:
    """All kinds of parts."""
    return sorted(TABLE)


def names(kind: str) -> list[str]:
    """The registered types of a kind, those of plug-ins included."""
    if kind not in TABLE:
        raise RegistryError(f"no kind {kind!r}{nearest(kind, kinds())}; kinds are {', '.join(kinds())}")
    return sorted([*TABLE[kind], *_plugins().get(kind, {})])


def register(kind: str, name: str, target: str) -> None:
    """Adds a part at run time, `target` being "module:Class". A clash is an error."""
    if name in names(kind):
        raise RegistryError(f"{kind} {name!r} is already registered as {_target(kind, name)}")
    TABLE[kind][name] = target


def _target(kind: str, name: str) -> str:
    choices = names(kind)
    if name not in choices:
        raise RegistryError(f"no {kind} {name!r}{nearest(name, choices)}; {kind} types are {', '.join(choices)}")
    return TABLE[kind].get(name) or _plugins()[kind][name]


def get(kind: str, name: str) -> Any:
    """The class behind a name. Raises RegistryError with the near miss, or ImportError of the part's own."""
    module, _, attribute = _target(kind, name).partition(":")
    return getattr(importlib.import_module(module), attribute)


def is_registered(cls: type) -> bool:
    """Whether a spec class is itself a registered part (and not only the base of a socket)."""
    return _type_name(cls) is not None


def type_of(spec: object) -> str:
    """The registered type of a spec object, by its class."""
    name = _type_name(type(spec))
    if name is None:
        raise RegistryError(f"{type(spec).__qualname__} is not registered under {getattr(spec, 'kind', None)!r}")
    return name


def _type_name(cls: type) -> str | None:
    kind = str(getattr(cls, "kind", None))
    return next((name for name in names(kind) if _loaded(_target(kind, name)) is cls), None)


def _loaded(target: str) -> object:
    """What a target names where its module is imported already, also when it only hands the class on."""
    module, _, attribute = target.partition(":")
    return getattr(sys.modules.get(module), attribute, None)
