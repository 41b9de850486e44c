"""The benchmark of language models runs, compares before it measures, and writes what it says; no time is asserted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from benchmarks import language
from benchmarks.layer.measure import DisagreementError
from benchmarks.models import jobs
from benchmarks.models.candidates import Candidate, build, write_checkpoint
from benchmarks.models.shapes import JOBS, MODELS


def test_a_quick_run_has_a_table_per_job(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    language.run(["--quick", "--models", "mixtral", "--json", str(tmp_path / "out.json"), "--without", "eager"])
    assert torch.get_num_threads() == threads
    written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert [section["mode"] for section in written["sections"]] == list(JOBS)
    for section in written["sections"]:
        names = {row["name"]: row for row in section["rows"]}
        assert {"moezoo", "moezoo packed", "transformers grouped_mm", "transformers batched_mm"} == names.keys()
        assert max(section["agreement"].values()) < 1e-4 and min(row["value"] for row in names.values()) > 0


def test_models_that_disagree_are_not_measured(tmp_path: Path) -> None:
    model = MODELS["olmoe"].tiny()
    write_checkpoint(model, tmp_path)
    candidates: Sequence[Candidate] = build(tmp_path)
    assert jobs.agreement(model, candidates)
    next(p for name, p in candidates[-1].module.named_parameters() if name.endswith("down")).data.mul_(1.5)
    with pytest.raises(DisagreementError, match="moezoo"):
        jobs.agreement(model, candidates)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "olmo"], "expected some of olmoe, mixtral"),
        (["--rounds", "0"], "--rounds"),
        (["--without", "eager", "--without", "grouped_mm", "--without", "batched_mm"], "--without: got all"),
    ],
)
def test_unknown_options_are_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        language.run(arguments)
    assert message in capsys.readouterr().err
