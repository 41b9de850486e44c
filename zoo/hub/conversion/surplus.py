"""Blocks behind the last one, which predict tokens after the next (DeepSeek-V3, arXiv 2412.19437, section 2.2).

They take no part in the model's own logits, so their tensors are left unread, as many blocks of them as config.json
says; an export says that it has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoo.hub.conversion.fields import Fields
from zoo.hub.conversion.language import Language

PREDICTORS = "num_nextn_predict_layers"
MOST = 64


def read_predictors(fields: Fields) -> int:
    """Number of such blocks, 0 to 64."""
    count = fields.get(PREDICTORS, int, 0)
    if not 0 <= count <= MOST:
        raise fields.error(PREDICTORS, f"got {count}, expected 0..{MOST}")
    return count


def predictors(content: Mapping[str, Any], model: Language) -> tuple[str, ...]:
    """Patterns of their tensors, for `Family.unread`: they are numbered on from the model's own blocks."""
    count = read_predictors(Fields(content, "config.json"))
    return tuple(rf"model\.layers\.{model.depth + i}\..*" for i in range(count))
