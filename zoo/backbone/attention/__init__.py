"""Attention of several kinds behind one socket."""

from zoo.backbone.attention.base import Attention, AttentionSpec
from zoo.backbone.attention.grouped_query import GroupedQuery, GroupedQuerySpec

__all__ = ["Attention", "AttentionSpec", "GroupedQuery", "GroupedQuerySpec"]
