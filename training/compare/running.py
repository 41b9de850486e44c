"""Running cells, in this process or in several, with one bar for all."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from training.claims.lab import bar
from training.compare.cells import Cell, measure, save

POLL = 0.5  # seconds between looks at the workers' count of steps
_STEPS: Any = None  # in a worker: the count of steps of all workers


def run_cells(cells: Sequence[Cell], folder: Path, workers: int, progress: bool = True) -> dict[str, str]:
    """Runs every cell that has no file yet; returns system and seed -> traceback of those that failed.

    A cell that fails stops no other, and is tried again the next time. Killed, all cells that were finished stay.
    """
    todo = [cell for cell in cells if not cell.path(folder).exists()]
    if not todo:
        return {}
    if workers == 1 or len(todo) == 1:
        return _here(todo, folder, progress)
    return _apart(todo, folder, min(workers, len(todo)), progress)


def _here(cells: Sequence[Cell], folder: Path, progress: bool) -> dict[str, str]:
    failed = {}
    for number, cell in enumerate(cells, 1):
        with bar(cell.train.steps, progress, f"{number}/{len(cells)} {_title(cell)}") as tick:
            try:
                save(cell, measure(cell, tick), folder)
            except Exception:  # a cell that fails is a result of the comparison
                failed[_title(cell)] = traceback.format_exc()
    return failed


def _apart(cells: Sequence[Cell], folder: Path, workers: int, progress: bool) -> dict[str, str]:
    from tqdm import tqdm

    spawn = multiprocessing.get_context("spawn")
    steps, failed = spawn.Value("q", 0), {}
    total, title = sum(cell.train.steps for cell in cells), f"{len(cells)} cells"
    with (
        _one_thread_each(),
        ProcessPoolExecutor(workers, mp_context=spawn, initializer=_begin, initargs=(steps,)) as pool,
        tqdm(total=total, desc=title, unit="step", disable=not progress, file=sys.stderr) as shown,
    ):
        running: dict[Future[str | None], Cell] = {pool.submit(_work, cell, folder): cell for cell in cells}
        try:
            while running:
                done, _ = wait(running, timeout=POLL, return_when=FIRST_COMPLETED)
                shown.update(steps.value - shown.n)
                for future in done:
                    cell = running.pop(future)
                    failure = _outcome(future)
                    if failure is not None:
                        failed[_title(cell)] = failure
                    shown.set_postfix_str(f"{_title(cell)} {'failed' if failure else 'done'}, {len(running)} left")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failed


def _outcome(future: Future[str | None]) -> str | None:
    """A cell's traceback, or what became of its worker."""
    try:
        return future.result()
    except BrokenProcessPool:
        return "a worker died, which took the others with it: killed, or out of memory (fewer --workers need less)\n"


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Workers begin with one thread each, whatever library asks."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _begin(steps: Any) -> None:
    """In a new worker: takes the count of steps, and sees to it that no worker outlives a killed command."""
    global _STEPS
    _STEPS = steps
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(cell: Cell, folder: Path) -> str | None:
    """One cell in a worker; the traceback where it fails."""

    def tick(loss: float) -> None:
        with _STEPS.get_lock():
            _STEPS.value += 1

    try:
        save(cell, measure(cell, tick), folder)
    except Exception:  # as in `_here`; the exception itself may not travel between processes
        return traceback.format_exc()
    return None


def _title(cell: Cell) -> str:
    return f"{cell.system}, seed {cell.seed}"
