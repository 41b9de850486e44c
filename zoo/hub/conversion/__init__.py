"""Public checkpoints in and out: config fields, tensors as views of ours, streaming, export."""
