"""How rotary frequencies are changed for contexts longer than those a model was trained on."""

from zoo.backbone.rope_scaling.base import RopeScalingSpec
from zoo.backbone.rope_scaling.llama3 import Llama3Spec
from zoo.backbone.rope_scaling.longrope import LongRopeSpec
from zoo.backbone.rope_scaling.stretched import DynamicSpec, LinearSpec, NTKSpec
from zoo.backbone.rope_scaling.yarn import YarnSpec

__all__ = ["DynamicSpec", "LinearSpec", "Llama3Spec", "LongRopeSpec", "NTKSpec", "RopeScalingSpec", "YarnSpec"]
