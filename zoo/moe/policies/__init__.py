"""Policies: edits of a routing between router and dispatch."""
