"""Does TTOM do the same on ComfyUI's own MODEL as on diffusers? The same prompts, plans and noise on both.

    python benchmarks/native.py --comfyui FOLDER [--python ITS_PYTHON] [--limit 20] [--model demo/model]

Starts that ComfyUI on the CPU with this clone as its only pack. There the demo's transformer comes from the
stock loader and is sampled by stock nodes, on the noise levels that diffusers has. About 40 s a prompt on one
core. Writes results/native.json.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from ttom_core.backbones import load
from ttom_core.backbones.names import convert
from ttom_core.evaluation.evaluate import estimate, load_prompts
from ttom_core.evaluation.results import figure, write_result
from ttom_core.evaluation.scores import score
from ttom_core.generate import generate
from ttom_core.optimize import PRESETS
from ttom_core.planner import plan

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "native.json"
FILE = "transformer.safetensors"
STEPS, GUIDANCE, SHIFT, PRESET = 20, 4.0, 4.0, "demo"


@contextmanager
def served(comfyui: Path, python: str, base: Path) -> Iterator[str]:
    """The address of a ComfyUI whose files are all in `base`, with this clone as its pack."""
    (base / "custom_nodes").mkdir(parents=True)
    (base / "custom_nodes" / "ttom").symlink_to(ROOT, target_is_directory=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        python, "main.py", "--cpu", "--port", str(port), "--base-directory", str(base),
        "--database-url", "sqlite:///:memory:", "--disable-api-nodes", "--disable-auto-launch",
    ]  # fmt: skip
    with (base / "log").open("wb") as log:
        server = subprocess.Popen(command, cwd=comfyui, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                urllib.request.urlopen(f"{url}/queue", timeout=60).close()
                break
            except OSError:
                if server.poll() is not None:
                    sys.exit((base / "log").read_text(errors="replace")[-2000:])
                time.sleep(1)
        yield url
    finally:
        server.terminate()
        server.wait(30)


def outputs(url: str, graph: dict[str, Any]) -> dict[str, Any]:
    """Queue an API graph and wait for what its nodes put out."""
    body = json.dumps({"prompt": graph}).encode()
    request = urllib.request.Request(f"{url}/prompt", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        name = json.load(answer)["prompt_id"]
    while True:
        with urllib.request.urlopen(f"{url}/history/{name}") as answer:
            entry = json.load(answer).get(name)
        if entry:
            if entry["status"]["status_str"] != "success":
                sys.exit(str(entry["status"]["messages"][-1]))
            return entry["outputs"]
        time.sleep(0.2)


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def graph(model: str, prompt: str, seed: int) -> dict[str, Any]:
    """The plain video by the stock KSampler, and the composed one, from the same noise."""
    sampling: dict[str, Any] = {
        "model": ["shift", 0], "positive": ["pos", 0], "negative": ["neg", 0], "latent_image": ["latent", 0],
        "seed": seed, "steps": STEPS, "cfg": GUIDANCE, "denoise": 1.0, "sampler_name": "euler",
        "scheduler": "normal",  # diffusers' noise levels
    }  # fmt: skip
    nodes = {
        "load": node("TTOM_LoadModel", model=model),
        "parts": node("TTOM_PipelineParts", backbone=["load", 0]),
        "unet": node("UNETLoader", unet_name=FILE, weight_dtype="default"),
        "shift": node("ModelSamplingSD3", model=["unet", 0], shift=SHIFT),
        "pos": node("TTOM_EncodePrompt", clip=["parts", 0], prompt=prompt),
        "neg": node("CLIPTextEncode", clip=["parts", 0], text=""),
        "latent": node("EmptyHunyuanLatentVideo", width=128, height=128, length=21, batch_size=1),
        "plan": node("TTOM_LayoutPlanner", prompt=prompt, seed=0),
        "soften": node(
            "TTOM_SoftMask",
            layout=["plan", 0], kind=PRESETS[PRESET].mask_kind, softness=PRESETS[PRESET].softness,
            num_frames=21, width=64, height=64,
        ),
        "base": node("KSampler", **sampling),
        "ttom": node("TTOM_LoRASampler", masks=["soften", 0], preset=PRESET, **sampling),
        "loss": node("PreviewAny", source=["ttom", 2]),
    }  # fmt: skip
    for name in ("base", "ttom"):
        nodes[f"{name} video"] = node("VAEDecode", samples=[name, 0], vae=["parts", 1])
        nodes[f"{name} saved"] = node("SaveImage", images=[f"{name} video", 0], filename_prefix=name)
    return nodes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--model", type=Path, default=ROOT / "demo" / "model")
    parser.add_argument("--prompts", type=Path, default=ROOT / "demo" / "prompts" / "held_out.json")
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    backbone = load(options.model, "cpu")
    composition: dict[str, list[float]] = {}
    first_losses, difference = [], []
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        convert(options.model, base / "models" / "diffusion_models" / FILE)
        (base / "models" / "diffusers").mkdir()
        (base / "models" / "diffusers" / "ours").symlink_to(options.model.resolve(), True)
        with served(options.comfyui, options.python, base) as url:
            for seed, spec in enumerate(tqdm(load_prompts(options.prompts, options.limit))):
                made = outputs(url, graph("ours", spec["prompt"], seed))
                losses = ast.literal_eval(made["loss"]["text"][0])["loss"]
                for name, settings in (("base", None), ("ttom", PRESETS[PRESET])):
                    files = made[f"{name} saved"]["images"]
                    frames = np.stack(
                        [np.asarray(Image.open(base / "output" / f["filename"])) for f in files]
                    )
                    layout = plan(spec["prompt"]) if settings else None
                    theirs = generate(
                        backbone, spec["prompt"], layout, settings,
                        seed=seed, steps=STEPS, guidance_scale=GUIDANCE,
                    )  # fmt: skip
                    difference.append(float(np.abs(frames / 255 - theirs.frames / 255).mean()))
                    for road, video in (("native", frames), ("diffusers", theirs.frames)):
                        found = score(video, spec).composition
                        composition.setdefault(f"{road}_{name}_composition", []).append(found)
                    if theirs.trace and theirs.trace.first_loss is not None:
                        first_losses.append(abs(losses[0] - theirs.trace.first_loss))
    table = {name: estimate(values, "score 0-1") for name, values in composition.items()}
    gains = np.subtract(composition["native_ttom_composition"], composition["diffusers_ttom_composition"])
    table["composition_of_native_over_diffusers"] = estimate(gains, "paired difference")
    table["loss_difference_step0"] = figure(first_losses, "nats, median and range")
    table["pixel_difference"] = figure(difference, "of 0-1, median and range")
    version = re.search(r'__version__ = "(.*)"', (options.comfyui / "comfyui_version.py").read_text())
    versions = {"comfyui": version[1] if version else "unknown", "torch": torch.__version__}
    command = f"python benchmarks/native.py --limit {options.limit}"
    write_result(options.result, command, 0, table, {"versions": versions, "preset": PRESET, "steps": STEPS})
    for name, row in table.items():
        print(f"{name}: {row['value']} ({row['low']} – {row['high']}), n {row['n']}")


if __name__ == "__main__":
    main()
