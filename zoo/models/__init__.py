"""Whole models: what is assembled from trunk and modalities."""
