"""A public checkpoint in our model and in transformers: do both say the same?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROWS, LENGTH = 2, 24
LIMIT = 1e-4  # of the largest logit; float32 through tens of layers stays well below
ROUTERS = (".gate", ".router", ".gate.topk")  # how modules that choose experts are called there


class PeerError(RuntimeError):
    """transformers cannot run the checkpoint here; the message says why."""


@dataclass(frozen=True)
class Parity:
    """One random batch through both, in float32.

    peer        transformers, with its version
    tokens      in the batch
    difference  greatest difference of logits, relative to the largest
    choices     tokens times MoE layers, None where the peer's choices could not be seen
    other       of these, how many chose other experts
    """

    peer: str
    tokens: int
    difference: float
    choices: int | None = None
    other: int = 0

    def line(self) -> str:
        """In words."""
        said = f"logits differ from {self.peer} by {self.difference:.1e} of the largest over {self.tokens} tokens"
        if self.choices is None:
            return f"{said}; its router choices cannot be seen"
        routed = f"; {self.choices - self.other} of {self.choices} router choices are equal"
        return said + routed if self.choices else said

    def problems(self) -> list[str]:
        """What is not as it should be."""
        found = []
        if not self.difference <= LIMIT:
            found.append(f"parity: logits differ by {self.difference:.1e} of the largest, expected at most {LIMIT:.0e}")
        if self.other:
            found.append(f"parity: {self.other} of {self.choices} router choices differ")
        return found


@torch.inference_mode()
def compare(folder: Path, *, ignore_remote_code: bool = False) -> Parity:
    """Runs a batch of random ids through our model, then through that of transformers; one is in memory at a time, and
    no code of the checkpoint is run.

    Raises ImportError where transformers is not installed, PeerError where it cannot run the checkpoint, and what
    zoo.load raises.
    """
    import transformers

    from zoo.hub.weights import load

    ours = load(folder, dtype=torch.float32, ignore_remote_code=ignore_remote_code)
    rows = ours.modalities[ours.find("text")].embedding.num_embeddings  # type: ignore[union-attr]
    ids = torch.randint(int(rows), (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    out = ours(input_ids=ids)
    mine, routes = out.logits, [record.routing.expert for record in out.records]
    del ours, out
    theirs, seen = _peer(transformers, folder, ids)
    scale = float(theirs.abs().max())
    gap = float((mine - theirs).abs().max())
    difference = gap / scale if scale > 0 else (math.inf if gap else 0.0)
    version = f"transformers {transformers.__version__}"
    if [r.shape for r in routes] != [s.shape for s in seen]:
        return Parity(version, ids.numel(), difference)
    pairs = zip(routes, seen, strict=True)
    other = sum(int((a.sort(-1).values != b.sort(-1).values).any(-1).sum()) for a, b in pairs)
    return Parity(version, ids.numel(), difference, ids.numel() * len(routes), other)


def _peer(transformers: Any, folder: Path, ids: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The peer's logits, and the experts it chose."""
    with _quiet(transformers):
        try:
            peer = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False
            )
            with choices_of(peer) as seen:
                return peer.eval()(input_ids=ids, use_cache=False).logits, seen
        except Exception as error:  # whatever another library does not do here: quantised weights, a family it lacks
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise PeerError(f"transformers {transformers.__version__} does not run it here: {reason}") from error


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """No progress bars and no advice on standard error."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def choices_of(peer: nn.Module) -> Iterator[list[Tensor]]:
    """[tokens, k] the experts that each router of the peer chooses inside, where it returns them or logits."""
    found: list[Tensor] = []

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        wide = [o for o in output if isinstance(o, Tensor) and o.ndim > 1] if isinstance(output, tuple) else []
        chosen = [o for o in wide if o.dtype == torch.int64]
        if wide and not chosen and isinstance(getattr(module, "top_k", None), int):  # JetMoE answers with sorted rows
            chosen = [wide[-1].topk(module.top_k).indices]  # type: ignore[arg-type]
        found.extend(o.flatten(0, -2) for o in chosen)

    hooks = [module.register_forward_hook(note) for name, module in peer.named_modules() if name.endswith(ROUTERS)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
