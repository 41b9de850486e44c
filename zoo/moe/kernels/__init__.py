"""Kernels: matrix products over rows sorted by expert."""
