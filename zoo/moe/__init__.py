"""The MoE layer: route, dispatch, compute, combine. `layer.MoE` is the only one; everything else is a part of it."""
