"""The families of public checkpoints that can be read and written: one table each.

To add one, write `zoo/hub/families/<model_type>.py` with a `FAMILY` and put its name into NAMES below. A table says
three things (see zoo.hub.conversion.family.Family), most of them by calling what families share:

1. `spec(fields) -> Language`. Read each field with `fields.get(name, type, default)`, the default being that of the
   library that writes the checkpoints (`fields.optional` where null means none while leaving it out means the default);
   refuse values we cannot express with `fields.only(name, *allowed)`. What nobody reads is refused by name at the end,
   unless it is null or harmless; a field that only this family knows to be harmless goes into `Family.harmless`, with a
   comment that says why. zoo/hub/conversion/read.py has the shared parts: `grouped` (attention), `dense`, `swiglu`,
   `moe`, `windows`, `sequential`, and `language`, which puts blocks, positions (rotary.py), norms and text together.
   Parts are plain mappings as in YAML; leave keys at their default out.
2. `config(model) -> fields`, the inverse, from a Language in which every default is written out. Raise MismatchError
   (or let `of_type` and `model.same` raise it) for what the family has no field for. It need not refuse everything:
   export reads the fields back with `spec` and compares. write.py mirrors read.py part by part.
3. `rules(model, layout)` yields a `Piece` per tensor: their name, ours, and which view of ours theirs is
   (`WHOLE.index(expert).rows(0, hidden)`, with `shape` where theirs has other axes, and a `Piece` per `part` of theirs
   where it holds several of ours). rules.py has generators for the shared parts. Every element of ours has to be
   covered once. Families whose experts transformers 5 stacks have two layouts, SEPARATE (what is on the hub, and what
   export writes) and FUSED; the names tell which one a checkpoint has.

Then write `tests/parity/families/<model_type>.py`: BASE (fields of a tiny model) and VARIANTS (name -> fields that
differ). Logits, routing, decoding, both layouts, the export and what it reopens as are compared with transformers.
docs/checkpoints.md has a row for each family.
"""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zoo.hub.conversion.family import Family

# In the order in which export tries them for a model that came from none of them.
NAMES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "olmo2",
    "mixtral",
    "olmoe",
    "flex_olmo",
    "granitemoe",
    "granitemoeshared",
    "qwen2_moe",
    "qwen3_moe",
    "gpt_oss",
    "ernie4_5_moe",
    "hunyuan_v1_moe",
    "phimoe",
    "jetmoe",
    "minimax",
    "deepseek_v3",
    "deepseek_v2",
    "dots1",
    "glm4_moe",
    "longcat_flash",
)


@functools.cache
def family(name: str) -> Family:
    """The table of a family by its `model_type`, one of NAMES."""
    found: Family = importlib.import_module(f"zoo.hub.families.{name}").FAMILY
    return found
