"""Dispatch: rows to where the weights live, and back."""
