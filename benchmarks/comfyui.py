"""The pack in a real ComfyUI: which workflows run, how soon a cancel is over, what starting costs.

    python -m benchmarks.comfyui --comfyui FOLDER [--python ITS_PYTHON] [--frontends FOLDER …] \
        [--interrupts 5] [--imports 5] [--workflows NAME …]

Starts that ComfyUI on the CPU with this clone as its only pack and queues every shipped workflow over HTTP,
as it is. Then both samplers are cancelled at moments spread over their optimisation, and each must run to its
end afterwards. The import is what ComfyUI does with a pack as it starts, in new processes in which ComfyUI
and torch are imported already.

In every frontend named, tests/comfyui/test_frontend.py opens, cancels and runs the workflows in a browser. A
frontend is the `static` folder of its package, or "installed" for ComfyUI's own; the tests' conftest says
what they need besides. About 10 minutes of one core, and as much for every frontend. Writes
results/comfyui.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.native import ROOT, outputs, served
from benchmarks.workflows import Graph, saved_prompt
from ttom_core.backbones.names import convert
from ttom_core.evaluation.results import figure, write_result

RESULT = ROOT / "benchmarks" / "results" / "comfyui.json"
SHIPPED = {path.stem: path for path in sorted((ROOT / "workflows").glob("*.json"))}
# Road → a workflow with one sampler that optimises, and that sampler.
CANCELLED = {
    "diffusers": ("prompt_to_video", "TTOM_TTOSampler"),
    "native": ("native_model", "TTOM_LoRASampler"),
}
INSTALLED = "installed"
IMPORT = """
import asyncio, gc, importlib.util, sys, time
root, sys.argv = sys.argv[1], ["main.py", "--cpu"]
sys.path.insert(0, ".")
import comfy.options
comfy.options.enable_args_parsing()
import utils.extra_config  # as main.py does: another package's utils may come in later
import execution, server, nodes, comfy_api.latest
gc.collect()  # what ComfyUI left behind is not swept at the pack's cost
started = time.perf_counter()
spec = importlib.util.spec_from_file_location(
    "pack", root + "/__init__.py", submodule_search_locations=[root]
)
sys.modules["pack"] = pack = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)

async def start():
    extension = await pack.comfy_entrypoint()
    for node in await extension.get_node_list():
        node.GET_SCHEMA()

asyncio.run(start())
print(time.perf_counter() - started)
"""


def ask(url: str, body: object = None) -> Any:
    """The JSON that an address answers, or None; a body is posted."""
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, content, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        text = answer.read()
    return json.loads(text) if text else None


@contextmanager
def demo_comfyui(comfyui: Path, python: str) -> Iterator[tuple[str, Path]]:
    """The address of a ComfyUI that has what the shipped workflows ask for, and the folder of its files."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        convert(ROOT / "demo" / "model", base / "models" / "diffusion_models" / "ttom_demo.safetensors")
        with served(comfyui, python, base) as url:
            yield url, base


def interrupts(url: str, graph: Graph, sampler: str, times: int) -> list[float]:
    """Seconds from each cancel until nothing runs; the video is made whole before and after."""
    (inputs,) = (node["inputs"] for node in graph.values() if node["class_type"] == sampler)

    def whole(seed: int) -> float:
        inputs["seed"] = seed
        started = time.perf_counter()
        outputs(url, graph)
        return time.perf_counter() - started

    whole(1)  # what comes before the sampler is cached from here on
    lasts, seconds = whole(2), []
    for k in range(times):
        inputs["seed"] = 3 + k
        name = ask(f"{url}/prompt", {"prompt": graph})["prompt_id"]
        # The optimisation is the first half and more of the sampling.
        time.sleep(lasts * (0.05 + 0.4 * k / times))
        started = time.perf_counter()
        ask(f"{url}/interrupt", {})
        while ask(f"{url}/queue")["queue_running"]:
            time.sleep(0.005)
        seconds.append(time.perf_counter() - started)
        while not (entry := ask(f"{url}/history/{name}").get(name)):
            time.sleep(0.05)
        if entry["status"]["messages"][-1][0] != "execution_interrupted":
            sys.exit(f"{sampler} ended by {entry['status']['messages'][-1]} instead of the cancel.")
    whole(3 + times)
    return seconds


def import_seconds(comfyui: Path, python: str) -> float:
    """What the pack adds to the start of ComfyUI."""
    command = [python, "-c", IMPORT, str(ROOT)]
    run = subprocess.run(command, cwd=comfyui, capture_output=True, text=True)
    if run.returncode:
        sys.exit(run.stderr[-2000:])
    return float(run.stdout.splitlines()[-1])


def driven(comfyui: Path, python: str, frontend: str, workflows: list[str]) -> tuple[str, int]:
    """A frontend's version, and how many of the workflows hold in it all that the tests ask."""
    test = "tests/comfyui/test_frontend.py::test_an_artist_runs_cancels_and_runs_it_again"
    environment = os.environ | {"COMFYUI_DIR": str(comfyui), "COMFYUI_PYTHON": python}
    environment.pop("COMFYUI_FRONTEND", None)
    if frontend != INSTALLED:
        environment["COMFYUI_FRONTEND"] = str(Path(frontend).resolve())
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-rs", f"--junitxml={report}"]
        run = subprocess.run(
            [*command, *(f"{test}[{name}]" for name in workflows)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
    versions = {row.get("value", "") for case in cases for row in case.iter("property")}
    good = [case for case in cases if not {"failure", "error", "skipped"} & {part.tag for part in case}]
    if len(good) < len(workflows):
        print(run.stdout[-5000:], file=sys.stderr)
    if len(versions) != 1:
        sys.exit(f"No workflow was opened in the frontend {frontend}.")
    return versions.pop(), len(good)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--workflows", nargs="+", choices=list(SHIPPED), default=list(SHIPPED))
    parser.add_argument("--frontends", nargs="+", default=[], metavar="FOLDER")
    parser.add_argument("--interrupts", type=int, default=5)
    parser.add_argument("--imports", type=int, default=5)
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    importing = [import_seconds(options.comfyui, options.python) for _ in range(options.imports)]
    figures = {"import_seconds": figure(importing, "s, nodes and their schemas included")}
    with demo_comfyui(options.comfyui, options.python) as (url, _):
        system, info = ask(f"{url}/system_stats")["system"], ask(f"{url}/object_info")
        graphs = {name: saved_prompt(path, info) for name, path in SHIPPED.items()}
        for name in tqdm(options.workflows):
            outputs(url, graphs[name])
        figures["workflows_run"] = figure([len(options.workflows)], f"of {len(SHIPPED)} shipped")
        for road, (name, sampler) in CANCELLED.items():
            seconds = interrupts(url, graphs[name], sampler, options.interrupts)
            figures[f"interrupt_seconds_{road}"] = figure(seconds, "s, from the cancel to idle")
    frontends = []
    for frontend in tqdm(options.frontends):
        version, good = driven(options.comfyui, options.python, frontend, options.workflows)
        figures[f"workflows_driven_{version}"] = figure([good], f"of {len(SHIPPED)}, in this frontend")
        frontends.append(version)
    versions = {
        "comfyui": system["comfyui_version"],
        "frontends": frontends,
        "torch": system["pytorch_version"],
    }
    settings = {"versions": versions, "workflows": options.workflows}
    command = f"python -m benchmarks.comfyui --interrupts {options.interrupts} --imports {options.imports}"
    command += " --comfyui FOLDER" + (" --frontends" + " FOLDER" * len(frontends) if frontends else "")
    write_result(options.result, command, 0, figures, settings)
    for name, row in figures.items():
        print(f"{name}: {row['value']} ({row['low']} – {row['high']}), n {row['n']}, {row['unit']}")


if __name__ == "__main__":
    main()
