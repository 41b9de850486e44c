"""Gates: the raw logits of a router, before anything is chosen.

A router is a gate and a rule of selection, and every rule works over every gate. A new gate is one file with two
classes and a line in the registry under the kind "gate":

- a `GateSpec` with its keys, its `cost` and `build`. `noise` says whether training draws random numbers; one that looks
  back at the layers before sets `carried`, and `follow` then refuses what it cannot come after.
- a `Gate`. One that reads its input alone gives `logits(x, ctx)`. One that does more overrides `signal(x, ctx)` and
  returns a `Signal`: logits that selection or weights see otherwise than losses do, what the next layer's gate finds
  in `ctx.carry`, sums for running statistics that `update` takes up once per optimiser step. `link(earlier)` is where a
  part that several layers share is found.

A gate with weights of its own stands on `drawn`, one around another gate on `holding`, as routers do.
`affine` multiplies in float32 at least; parameters stay so whatever the model is cast to.
"""
