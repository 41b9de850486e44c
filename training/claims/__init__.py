"""Checks of what systems promise, and the small laboratory that trains for them and for comparisons."""
