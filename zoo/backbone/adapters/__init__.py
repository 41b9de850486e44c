"""Adapters: what is added to the linear maps of a trunk whose own weights stay as they are."""
