"""The model card of a finished training: what was trained, from which seeds, with which curves."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from .scenes import FPS, SIZE

CARD = """# {title}

{about}

| part | parameters | shape |
|---|---|---|
{parts}

Clips are 64×64, {frames} frames, 8 fps; latents 16×{latents}×16×16, {tokens} video and {text} text tokens.
Use 20 steps, guidance 4, and `max_sequence_length={text}` when calling the pipeline yourself:
it was trained with exactly that much padding.

## Training

`{command}`, seed {seed}, torch {torch} on {machine}.
{note}
| stage | samples seen | iterations | wall time |
|---|---|---|---|
{stages}

A quarter of the colour × shape × role combinations never appears in training
(`demo.scenes.held_out`); prompts for evaluation are built around those.

![loss curves](curves.png)

Data: generated, no third party's. Licence: as the code, Apache-2.0.
"""


def read_curve(path: Path) -> list[dict[str, float]]:
    """The rows of a curve file, the last one winning where a resumed run wrote an iteration twice."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row for _, row in sorted({row["iteration"]: row for row in rows}.items())]


def save_model(pipe: DiffusionPipeline, folder: Path, frames: int) -> None:
    """Write a demo model as a diffusers folder in bf16, with what clips it makes."""
    pipe.to("cpu", torch.bfloat16).save_pretrained(folder)
    size = {"num_frames": frames, "height": SIZE, "width": SIZE, "fps": FPS}
    clip = size | {"steps": 20, "guidance_scale": 4.0}
    (folder / "clip.json").write_text(json.dumps(clip, indent=1) + "\n")


def machine(device: str) -> str:
    """What a model was trained on."""
    return torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU threads"


def write_card(
    folder: Path,
    pipe: DiffusionPipeline,
    shapes: dict[str, str],
    frames: int,
    work: Path,
    facts: dict[str, Any],
) -> None:
    """Write MODEL_CARD.md and curves.png into `folder` from the training's curves in `work`.

    `shapes` says a word of each part, `facts` fill the rest of `CARD`.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    taught, stages = facts.pop("seen"), []
    size = (4.5 * len(taught), 3)
    figure, axes = pyplot.subplots(1, len(taught), figsize=size, squeeze=False, layout="constrained")
    for axis, (name, seen) in zip(axes[0], taught.items(), strict=True):
        rows = read_curve(work / f"{name}.jsonl")
        axis.plot([r["iteration"] for r in rows], [r["loss"] for r in rows])
        axis.set(title=name, xlabel="iteration", ylabel="loss", yscale="log")
        # Breaks between two runs of a resumed training are not training time.
        gaps = [b["time"] - a["time"] for a, b in pairwise(rows)]
        minutes = sum(gap for gap in gaps if gap < 600) / 60
        stages.append(f"| {name} | {seen} | {int(rows[-1]['iteration'])} | {minutes:.0f} min |")
    figure.savefig(folder / "curves.png", dpi=100)
    pyplot.close(figure)
    t, u = pipe.transformer.config, pipe.text_encoder.config
    heads = f"{t.num_layers} layers, {t.num_attention_heads} × {t.attention_head_dim}"
    shapes = {
        "transformer": f"{heads}, {shapes['transformer']}",
        "vae": f"{shapes['vae']}, 16 latent channels",
        "text_encoder": f"{u.num_layers} layer, d_model {u.d_model}, {u.vocab_size} words",
    }
    parts = [
        f"| {name} | {getattr(pipe, name).num_parameters() / 1e6:.2f} M | {shape} |"
        for name, shape in shapes.items()
    ]
    latents = 1 + (frames - 1) // 4
    sizes = {"frames": frames, "latents": latents, "tokens": 64 * latents}
    text = CARD.format(
        parts="\n".join(parts), stages="\n".join(stages), torch=torch.__version__, **sizes, **facts
    )
    (folder / "MODEL_CARD.md").write_text(text)
