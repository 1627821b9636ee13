"""Work on a model in processes of one thread each, continued where an interruption left it.

For a model this small, many processes of one thread are the faster split. A finished piece of work is one
JSON line under a key, so that whatever ends a run, a `kill -9` included, the same command goes on from there.
"""

from __future__ import annotations

import ast
import hashlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import TTOMError

if TYPE_CHECKING:
    from ..backbones import Source
    from ..backbones.base import Backbone

J = TypeVar("J")
R = TypeVar("R")
Row = dict[str, Any]


@cache
def backbone_of(model: str | Source) -> Backbone:
    """A model, loaded once in each process, without the libraries' own progress bars."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    from ..backbones import Source

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    return (Source(model) if isinstance(model, str) else model).load()


def identity_of(backbone: Backbone) -> str:
    """What of a model decides a clip: its fingerprint, and the VAE, text encoder and schedule around it.

    An adapter fits the denoiser whatever stands around it, so the fingerprint alone does not say this.
    """
    from ..backbones.fingerprint import fingerprint

    pipeline = getattr(backbone, "pipeline", None)
    if pipeline is None:  # a host's model, of which nothing else is known
        return backbone.video_fingerprint
    around: dict[str, Any] = {}
    for name, part in pipeline.components.items():
        if part is backbone.transformer:
            continue
        if hasattr(part, "named_parameters"):
            around[f"{name} weights"] = fingerprint(name, 0, 0, part.named_parameters())
        if isinstance(config := getattr(part, "config", None), Mapping):  # diffusers' own
            around[name] = {key: value for key, value in config.items() if not key.startswith("_")}
    return f"{backbone.video_fingerprint}-{digest(around)[:8]}"


def digest(facts: Any) -> str:
    """A key of 16 hex digits for everything that decides a result; `facts` is what JSON can hold."""
    text = json.dumps(facts, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def code_of(*modules: str) -> str:
    """A key of what these modules of ttom_core do: their code without comments, descriptions and layout.

    What stands in PRESETS is left out: a clip's key has its settings themselves.
    """
    folder = Path(__file__).parents[1]
    trees = [ast.parse((folder / f"{name}.py").read_text(encoding="utf-8")) for name in modules]
    return digest([ast.dump(_Meaning().visit(tree)) for tree in trees])


class _Meaning(ast.NodeTransformer):
    """Leaves of a module what can change a result."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_keyword(self, node: ast.keyword) -> ast.AST | None:
        return None if node.arg == "description" else self.generic_visit(node)

    def _assigned(self, node: ast.Assign | ast.AnnAssign | ast.AugAssign) -> ast.AST | None:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        presets = any(isinstance(target, ast.Name) and target.id == "PRESETS" for target in targets)
        return None if presets else self.generic_visit(node)

    visit_Assign = visit_AnnAssign = visit_AugAssign = _assigned


def in_workers(
    work: Callable[[Backbone, J], R],
    jobs: Mapping[str, J],
    model: str | Source,
    workers: int | None = None,
) -> Iterator[tuple[str, R]]:
    """(key, work(backbone, job)) of every job, as they are done.

    `work` is a module's function, for it is sent to the processes by name. `workers` are one a core, or one
    alone where there is a GPU: each holds the model. An error in the work, or Ctrl-C here, ends all of them
    at once. TTOMError when a process is killed from outside.
    """
    if workers is not None and workers < 1:
        raise TTOMError(f"At least 1 worker is needed, not {workers}.")
    if not jobs:
        return
    count = min(workers or _room_for_models(), len(jobs))
    strangers = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=_start)
    try:
        with _ctrl_c_is_for_us():
            futures = {pool.submit(_work, work, model, job): key for key, job in jobs.items()}
        for future in as_completed(futures):
            yield futures.pop(future), future.result()
    except BrokenProcessPool as error:
        raise TTOMError(
            "A worker process was killed, perhaps for want of memory; run the same command again to "
            "continue, with fewer workers if it happens again."
        ) from error
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - strangers:
            process.terminate()
        raise
    finally:
        pool.shutdown()


def _room_for_models() -> int:
    import torch

    return 1 if torch.cuda.is_available() else os.cpu_count() or 1


def rows_of(
    work: Callable[[Backbone, J], Row],
    jobs: Mapping[str, J],
    model: str | Source,
    path: Path,
    *,
    again: Collection[str] = (),
    workers: int | None = None,
    on_row: Callable[[int, Row], None] | None = None,
) -> dict[str, Row]:
    """The row of every job by its key, in the jobs' order; what `path` holds already is not made again.

    A key says all that decides the row (`digest`), and stands in it. Those named in `again` are made
    again, for the sake of what their work leaves beside the row. `on_row(left, row)` is called for each
    row that is made now, `left` being how many are still to come.
    """
    known = read_rows(path)
    missing = {key: job for key, job in jobs.items() if key not in known or key in again}
    if missing:
        path.parent.mkdir(parents=True, exist_ok=True)
        left = len(missing)
        with path.open("a", encoding="utf-8") as file:
            for key, row in in_workers(work, missing, model, workers):
                known[key], left = {"key": key, **row}, left - 1
                file.write(json.dumps(known[key]) + "\n")
                file.flush()
                if on_row:
                    on_row(left, known[key])
    return {key: known[key] for key in jobs}


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, Row], None]]:
    """A bar on the terminal, as an `on_row`; it counts what this run makes."""
    from tqdm import tqdm

    with tqdm(desc=label, unit="clip") as bar:

        def advance(left: int, row: Row) -> None:
            bar.total = bar.n + 1 + left
            bar.update()

        yield advance


def read_rows(path: Path) -> dict[str, Row]:
    """The rows of a file by key. A line that an interruption cut short is closed, and counts for nothing."""
    if not path.exists():
        return {}
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        if text and not text.endswith("\n"):
            with path.open("a", encoding="utf-8") as file:
                file.write("\n")  # else the next row would be lost with it
    except OSError as error:
        raise TTOMError(f"{path} cannot be read as rows of JSON; choose another file or folder.") from error
    rows = {}
    for line in text.splitlines():
        try:
            row = json.loads(line)
            rows[str(row["key"])] = row
        except (ValueError, KeyError, AttributeError, TypeError):
            continue
    return rows


# In a worker --------------------------------------------------------------------------------------


def _start() -> None:
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where a handler is not inherited (Windows)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    """A parent that is killed says nothing to its processes, and they would wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(work: Callable[[Backbone, J], R], model: str | Source, job: J) -> R:
    return work(backbone_of(model), job)


@contextmanager
def _ctrl_c_is_for_us() -> Iterator[None]:
    """What is started inside never hears Ctrl-C, not even while Python starts; later we do again."""
    if threading.current_thread() is not threading.main_thread():
        yield  # where Python takes no handlers, and hears no Ctrl-C
        return
    old = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, old)
