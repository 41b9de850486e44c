"""Experts: what computes on the rows that were sent to it."""
