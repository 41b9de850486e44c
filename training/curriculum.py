"""Curricula: stages as data, run one after the other in one process, each from where the last one stopped.

A stage names what `fit` takes and how it begins. Beside each other in the run's folder stand one folder per stage, and
`weights.safetensors` in it says that the stage is finished: a curriculum that was killed skips those and resumes the
stage it was in from that stage's `last.ckpt`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from training.kept_zeros import keep_zeros
from training.settings import arguments, remember
from zoo.hub.entries import plain_spec
from zoo.models.unified import ModelSpec
from zoo.spec import SpecError, dump, override, parse, read_yaml
from zoo.surgery.base import State, SurgerySpec

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback

    from training.data import MixtureData
    from training.module import UnifiedModule

FINISHED = "weights.safetensors"
OWNED = ("model", "data", "max_steps", "folder", "callbacks")  # arguments of `fit` that a curriculum gives itself


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """One stage.

    name   its folder
    steps  optimiser steps
    enter  the surgery it begins with, on earlier stages: copy, merge, ...; random weights without
    fit    what `fit` takes: model, data and trainer, laid over the curriculum's `defaults`
    """

    name: str
    steps: int
    enter: SurgerySpec | None = None
    fit: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps: got {self.steps}, expected 1 or more")
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise ValueError(f"name: got {self.name!r}, expected letters, digits, '-' and '_': it is a folder's name")


@dataclass(frozen=True, kw_only=True)
class CurriculumSpec:
    """A curriculum.

    output    folder of the run
    defaults  what `fit` takes in every stage, unless the stage says otherwise
    stages    the stages, in order
    """

    output: str
    defaults: dict[str, Any] = field(default_factory=dict)
    stages: tuple[StageSpec, ...]

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for i, stage in enumerate(self.stages):
            for name in () if stage.enter is None else stage.enter.sources():
                if name not in seen:
                    raise ValueError(f"stages[{i}].enter: {name!r} is no stage before {stage.name!r}")
            if stage.name in seen:
                raise ValueError(f"stages[{i}].name: {stage.name!r} is taken by an earlier stage")
            seen.add(stage.name)


def resolve(defaults: Mapping[str, Any], stage: StageSpec) -> dict[str, Any]:
    """What `fit` gets in a stage: model, data and trainer, the stage's own keys over the defaults."""
    base = {"model": {}, "data": {}, "trainer": {}, **defaults}
    for section, values in stage.fit.items():
        if section not in base:
            raise SpecError(f"stages.{stage.name}.fit: unknown section {section!r}; expected model, data or trainer")
        base[section] = {**base[section], **values}
    return base


def build(spec: CurriculumSpec, stage: StageSpec) -> tuple[UnifiedModule, MixtureData, dict[str, Any]]:
    """A stage's module, data and trainer settings. Raises SpecError naming a key that `fit` does not take."""
    from training.data import MixtureData
    from training.module import UnifiedModule
    from training.run import fit

    settings, path = resolve(spec.defaults, stage), f"stages.{stage.name}.fit"
    trainer = arguments(fit, settings["trainer"], f"{path}.trainer", OWNED)
    data = MixtureData(**arguments(MixtureData, settings["data"], f"{path}.data"))
    module = UnifiedModule(**arguments(UnifiedModule, settings["model"], f"{path}.model"))
    module.schedule.check(stage.steps)
    if stage.enter is not None:
        try:
            stage.enter.check(module.model.spec, {name: described(spec, name) for name in stage.enter.sources()})
        except ValueError as error:
            raise SpecError(f"stages.{stage.name}.enter.{error}") from error
    return module, data, trainer


def run(spec: CurriculumSpec, *, progress: bool = True) -> Path:
    """Runs all stages that are not finished; returns the weights of the last one."""
    from training.run import fit

    root = Path(spec.output)
    prepared: dict[str, MixtureData] = {}
    for number, stage in enumerate(spec.stages, 1):
        folder, settings = root / stage.name, resolve(spec.defaults, stage)
        begun = {"steps": stage.steps, "enter": dump(stage.enter), "model": settings["model"], "data": settings["data"]}
        if (folder / FINISHED).exists():
            remember(folder, begun)
            continue
        print(f"stage {number} of {len(spec.stages)}: {stage.name}, {stage.steps} steps", flush=True)
        module, data, trainer = build(spec, stage)
        remember(folder, begun)
        callbacks: list[Callback] = []
        if stage.enter is not None:
            callbacks = begin(module, spec, stage.enter)
            reuse(data, prepared, stage.enter)
        settings = {"progress": progress, **trainer}
        fit(module, data, max_steps=stage.steps, folder=folder, callbacks=callbacks, **settings)
        save_weights(module.model, folder / FINISHED)
        prepared[stage.name] = data
    return root / spec.stages[-1].name / FINISHED


def begin(module: UnifiedModule, spec: CurriculumSpec, enter: SurgerySpec) -> list[Callback]:
    """Gives the model the weights its stage begins with; what was fitted before training comes along. Returns what has
    to take part in the training."""
    from safetensors.torch import load_file

    model, folder = module.model, Path(spec.output)
    sources = {name: (described(spec, name), load_file(folder / name / FINISHED)) for name in enter.sources()}
    result, state = enter.apply(model.spec, model.state_dict(), sources)
    if result != model.spec:
        raise ValueError("enter: the surgery makes another model than the stage describes")
    model.load_state_dict(state)
    for name, parameter in model.named_parameters():
        if enter.keeps_zeros(name):
            keep_zeros(parameter)
    owned = [name for name in module.names if enter.owner(name) is not None]
    if owned:
        module.mark_fitted(*owned)
    weights = {name: source[1] for name, source in sources.items()}
    return _remembered(spec, enter, state, weights) if enter.remembered() else []


def _remembered(spec: CurriculumSpec, enter: SurgerySpec, state: State, sources: Mapping[str, State]) -> list[Callback]:
    """What gives the stage's optimiser the moments that the surgery carries over."""
    from training import moments
    from training.callbacks.checkpoint import LAST
    from training.module import UnifiedModule

    found = {}
    for name in enter.remembered():
        stage = next(stage for stage in spec.stages if stage.name == name)
        module = UnifiedModule(**arguments(UnifiedModule, resolve(spec.defaults, stage)["model"], f"stages.{name}.fit"))
        found[name] = moments.read(Path(spec.output) / name / LAST, module)
    kinds = sorted({kind for by_kind in found.values() for kind in by_kind})
    return [moments.Remember({k: enter.moments(state, sources, {n: by[k] for n, by in found.items()}) for k in kinds})]


def described(spec: CurriculumSpec, name: str) -> ModelSpec:
    """The description of a stage's model."""
    stage = next(stage for stage in spec.stages if stage.name == name)
    model = resolve(spec.defaults, stage)["model"]
    return parse(ModelSpec, override(plain_spec(model["spec"]), model.get("overrides") or {}, ModelSpec))


def reuse(data: MixtureData, prepared: Mapping[str, MixtureData], enter: SurgerySpec) -> None:
    """Examples that an earlier stage of this process prepared with the very modality this stage goes on with."""
    for source, spec in data.sources.items():
        stage = enter.owner(spec.modality or source)
        if stage is not None and stage in prepared:
            data.adopt(prepared[stage], source)


def save_weights(model: nn.Module, path: Path) -> None:
    """Writes safetensors beside and renames, so that the file is there whole or not at all."""
    from safetensors.torch import save_file

    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    temporary = path.with_suffix(".tmp")
    save_file(state, temporary)
    temporary.replace(path)


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m training curriculum`: runs or goes on with a curriculum. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m training curriculum", description=__doc__.split("\n\n")[0])
    parser.add_argument("--config", required=True, help="a YAML file of stages, such as configs/stages/quickstart.yaml")
    parser.add_argument("--output", help="folder of the run, in place of the one the file names")
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the stages, train nothing")
    args = parser.parse_args(argv)
    try:
        spec = read(args.config, args.output)
        if args.dry_run:
            dry_run(spec)
        else:
            print(f"weights: {run(spec)}")
    except (ValueError, LookupError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def read(path: str | Path, output: str | None = None) -> CurriculumSpec:
    """A curriculum's YAML, with its output folder exchanged where given."""
    plain = read_yaml(path)
    return parse(CurriculumSpec, plain if output is None else {**plain, "output": output})


def dry_run(spec: CurriculumSpec) -> None:
    """Builds every stage's model and data descriptions, which is where mistakes show, and prints them."""
    for stage in spec.stages:
        module, data, _ = build(spec, stage)
        trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
        chosen = {name: str(source.choose(name)) for name, source in data.sources.items()}
        print(f"{stage.name}: {stage.steps} steps, {trained:,} parameters train, data {chosen}")
