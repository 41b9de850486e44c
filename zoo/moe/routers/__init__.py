"""Routers: which experts a token goes to, and with which weight.

Most are a `GatedRouter`: `raw, logits, weighing, carry, update = self.gate(x, ctx)` gives what losses, selection and
weights see (see zoo/moe/gates). The rule chooses by `logits`, weighs by `weigh(weighing, expert)`, and hands `raw`,
`carry` and `update` on in its Routing. A rule that decides for several layers at once is a `Router` of its own; `begin`
runs once per forward, `link` once after the trunk is built, `follow` when it is described.
"""
