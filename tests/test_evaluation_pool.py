"""Work in processes: continued after any end, and no process outlives its parent."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline

from ttom_core.backbones.folder import TrainedClip
from ttom_core.backbones.wan import WanBackbone
from ttom_core.errors import TTOMError
from ttom_core.evaluation import pool
from ttom_core.evaluation.pool import digest, identity_of, in_workers, rows_of

# Workers import this module by name, from a folder that they are told of.
WORK = """
import os, time
from pathlib import Path

def square(backbone, job):
    number, seconds, folder = job
    Path(folder, f"{os.getpid()}.pid").touch()
    with Path(folder, "made").open("a") as file:
        file.write(f"{number}\\n")
    time.sleep(seconds)
    if number < 0:
        raise ValueError("negative")
    if number == 13:
        os._exit(1)
    return {"square": number * number, "model": backbone}
"""
RUN = """
import sys, work
from pathlib import Path
from ttom_core.evaluation import pool

pool.backbone_of = lambda model: model

if __name__ == "__main__":
    folder = sys.argv[1]
    jobs = {str(n): (n, float(sys.argv[2]), folder) for n in range(6)}
    try:
        rows = pool.rows_of(work.square, jobs, "m", Path(folder, "rows.jsonl"), workers=2)
    except KeyboardInterrupt:
        sys.exit(130)
    print(*(row["square"] for row in rows.values()))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the work in it, where processes find it, and with a model that needs no loading."""
    (tmp_path / "work.py").write_text(WORK)
    (tmp_path / "run.py").write_text(RUN)
    root = Path(__file__).resolve().parent.parent
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(root)]))
    return tmp_path


def start(folder: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, str(folder / "run.py"), str(folder), str(seconds)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_for_rows(folder: Path, count: int) -> None:
    path, deadline = folder / "rows.jsonl", time.monotonic() + 60
    while not path.exists() or path.read_text().count("\n") < count:
        assert time.monotonic() < deadline, "no rows came"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def workers_are_gone(folder: Path) -> bool:
    pids = [int(path.stem) for path in folder.glob("*.pid")]
    deadline = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(pids) and not any(map(alive, pids))


def test_a_key_changes_with_every_fact_and_with_no_order():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    facts = {"settings": {"rank": 8}, "prompt": "a red circle", "seed": 0}
    keys = {digest(facts), digest(facts | {"seed": 1}), digest(facts | {"settings": {"rank": 4}})}
    assert len(keys) == 3
    with pytest.raises(ValueError):
        digest({"a": float("nan")})


@pytest.mark.slow
@pytest.mark.parametrize("signal_", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_ended_goes_on_and_gives_the_same_rows(folder, signal_):
    run = start(folder, 0.3)
    wait_for_rows(folder, 2)
    if signal_ == signal.SIGKILL:
        run.kill()  # the parent alone: its workers must notice
    else:
        os.killpg(run.pid, signal.SIGINT)  # as a terminal sends Ctrl-C: to everyone
    _, err = run.communicate(timeout=60)
    if signal_ == signal.SIGINT:
        assert run.returncode == 130 and "Traceback" not in err, err
    assert workers_are_gone(folder)
    with (folder / "rows.jsonl").open("a") as file:
        file.write('{"key": "5", "square')  # cut short in the middle of a line
    kept = {json.loads(line)["key"] for line in (folder / "rows.jsonl").read_text().splitlines()[:-1]}
    (folder / "made").unlink()
    again = start(folder, 0.0)
    out, err = again.communicate(timeout=60)
    assert again.returncode == 0, err
    assert out.split() == ["0", "1", "4", "9", "16", "25"]
    assert kept and not kept & set((folder / "made").read_text().split())
    rows = [line for line in (folder / "rows.jsonl").read_text().splitlines() if line.endswith("}")]
    assert sorted(json.loads(line)["key"] for line in rows) == list("012345")
    (folder / "made").unlink()
    third = start(folder, 0.0)
    assert third.communicate(timeout=60)[0] == out
    assert not (folder / "made").exists(), "a finished run has nothing left to do"


@pytest.mark.slow
def test_an_error_in_the_work_reaches_the_caller_and_a_killed_worker_is_one_sentence(folder, monkeypatch):
    monkeypatch.syspath_prepend(str(folder))
    import work

    from ttom_core.backbones import ModelError

    nowhere = str(folder / "nowhere")
    with pytest.raises(ModelError, match="no model folder"):
        list(in_workers(work.square, {"a": (1, 0.0, str(folder))}, nowhere, 1))
    code = (
        "import work; from ttom_core.evaluation import pool; pool.backbone_of = str\n"
        "if __name__ == '__main__':\n"
        "    list(pool.in_workers(work.square, {'a': (NUMBER, 0.0, '.')}, 'm', 1))"
    )
    for number, words in ((-1, "ValueError: negative"), (13, "TTOMError: A worker process was killed")):
        script = folder / "bad.py"
        script.write_text(code.replace("NUMBER", str(number)))
        run = subprocess.run(
            [sys.executable, str(script)], cwd=folder, capture_output=True, text=True, timeout=60
        )
        assert run.returncode == 1 and words in run.stderr, run.stderr


def test_nothing_to_do_starts_nothing_and_bad_input_is_refused(tmp_path):
    assert list(in_workers(print, {}, "nowhere")) == []
    path = tmp_path / "rows.jsonl"
    path.write_text('{"key": "a", "square": 1}\n[1]\n{"no": "key"}\nnull\n')
    assert rows_of(print, {"a": 1}, "nowhere", path) == {"a": {"key": "a", "square": 1}}
    with pytest.raises(TTOMError, match="At least 1 worker"):
        list(in_workers(print, {"a": 1}, "nowhere", 0))
    with pytest.raises(TTOMError, match="cannot be read"):
        rows_of(print, {"a": 1}, "nowhere", tmp_path)


def test_code_is_what_it_does(tmp_path, monkeypatch):
    room = tmp_path / "ttom_core"
    (room / "evaluation").mkdir(parents=True)
    monkeypatch.setattr(pool, "__file__", str(room / "evaluation" / "pool.py"))

    def key(text):
        (room / "one.py").write_text(text)
        return pool.code_of("one")

    own = 'def f(x):\n    return x + 1\n\n\nPRESETS = {"a": 1}\nPRESETS |= {"b": 2}\nRATE: float = g(0.5)\n'
    kept = (
        '"""What it is."""\n\n# why\n' + own,
        own.replace("    return", '    """Says."""\n    return'),
        own.replace("x + 1", "(x\n+ 1)"),
        own.replace("1}", "7}"),
        own.replace("2}", "7}"),
        own.replace("g(0.5)", 'g(0.5, description="a rate")'),
    )
    assert {key(text) for text in kept} == {key(own)}
    changed = (own.replace("x + 1", "x + 2"), own.replace("0.5", "0.6"), own.replace("RATE", "RATIO"))
    assert len({key(own), *(key(text) for text in changed)}) == 4


def test_a_models_identity_knows_what_stands_around_the_denoiser(tiny_pipeline):
    def identity(**changed):
        return identity_of(WanBackbone(WanPipeline(**{**parts, **changed}), clip=TrainedClip(fps=8)))

    parts = {name: part for name, part in tiny_pipeline.components.items() if name != "transformer_2"}
    scheduler, vae = parts["scheduler"], copy.deepcopy(parts["vae"])
    shifted = type(scheduler).from_config(scheduler.config, shift=scheduler.config.shift + 1)
    with torch.no_grad():
        next(vae.decoder.parameters()).add_(0.5)
    found = [identity(), identity(scheduler=shifted), identity(vae=vae)]
    assert len(set(found)) == 3 and identity() == found[0]
    assert all(one.startswith(WanBackbone(tiny_pipeline).video_fingerprint) for one in found)
