"""Surgery: (spec, weights) in, (spec, weights) out, with a stated bound on how far outputs may move."""
