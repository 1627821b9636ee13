"""Pictures where people would rather look: layouts on frames, heat maps, strips, loss curves, videos.

Frames are uint8 [F, H, W, 3] throughout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .layout import Layout, frame_times

# Distinct on dark and light, and under the common colour blindnesses (Okabe and Ito 2008).
COLOURS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (213, 94, 0),
    (204, 121, 167),
    (0, 114, 178),
)
WIDE = 256  # small frames are enlarged to about this width


def enlarge(frames: np.ndarray, width: int = WIDE) -> np.ndarray:
    """Whole-number nearest-neighbour enlargement to at least `width`; larger frames stay as they are."""
    factor = max(1, -(-width // frames.shape[2]))
    return frames.repeat(factor, 1).repeat(factor, 2)


def draw_layout(frames: np.ndarray, layout: Layout) -> np.ndarray:
    """Each object's box and id on every frame, enlarged; one colour a phrase."""
    frames = enlarge(frames)
    _, height, width, _ = frames.shape
    boxes = layout.boxes(frame_times(len(frames)))
    phrases = layout.phrases
    font = ImageFont.load_default(size=max(11, width // 20))
    drawn = []
    for f, frame in enumerate(frames):
        image = Image.fromarray(frame)
        draw = ImageDraw.Draw(image)
        for item, (x, y, w, h) in zip(layout.objects, boxes[:, f], strict=True):
            if np.isnan(x):
                continue
            colour = COLOURS[phrases.index(item.phrase) % len(COLOURS)]
            corners = (x * width, y * height, (x + w) * width - 1, (y + h) * height - 1)
            draw.rectangle(corners, outline=colour, width=max(2, width // 96))
            place = (corners[0] + 3, corners[1] + 2)
            back = draw.textbbox(place, item.id, font=font)
            shift = min(0, width - 2 - back[2])
            draw.rectangle((back[0] - 2 + shift, back[1] - 1, back[2] + 2 + shift, back[3] + 1), fill=colour)
            draw.text((place[0] + shift, place[1]), item.id, fill=(0, 0, 0), font=font)
        drawn.append(np.asarray(image))
    return np.stack(drawn)


def heatmap(frames: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """Maps [τ, h, w] in colour over greyed frames; each frame takes its nearest latent frame's map."""
    from matplotlib import colormaps

    frames = enlarge(frames)
    count, height, width, _ = frames.shape
    peak = max(float(maps.max()), 1e-12)
    drawn = []
    for f, frame in enumerate(frames):
        latent = round(f / max(count - 1, 1) * (len(maps) - 1))
        grey = Image.fromarray((maps[latent] / peak * 255).astype(np.uint8))
        level = np.asarray(grey.resize((width, height), Image.Resampling.BICUBIC)) / 255
        heat = colormaps["inferno"](level)[..., :3] * 255
        drawn.append(0.3 * frame.mean(-1, keepdims=True) + 0.7 * heat)
    return np.stack(drawn).clip(0, 255).astype(np.uint8)


def strip(rows: Mapping[str, np.ndarray], columns: int = 6) -> Image.Image:
    """Labelled rows of evenly spaced frames in one picture."""
    rows = {label: enlarge(frames, 128) for label, frames in rows.items()}
    height, width = max(r.shape[1] for r in rows.values()), max(r.shape[2] for r in rows.values())
    gap, top = 4, 26
    sheet = Image.new("RGB", (columns * (width + gap) - gap, len(rows) * (height + top)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=16)
    for r, (label, frames) in enumerate(rows.items()):
        y = r * (height + top)
        draw.text((4, y + 4), label, fill="black", font=font)
        for c, f in enumerate(np.linspace(0, len(frames) - 1, columns).round().astype(int)):
            sheet.paste(Image.fromarray(frames[f]), (c * (width + gap), y + top))
    return sheet


def loss_curve(rows: Sequence[Any], path: Path) -> None:
    """The loss of every iteration (rows with step, sigma, loss), the denoising steps marked."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(range(len(rows)), [row.loss for row in rows], marker=".", color="#0072B2")
    for index, row in enumerate(rows):
        if index == 0 or rows[index - 1].step != row.step:
            axes.axvline(index, color="0.8", zorder=0)
            axes.text(index, 1.01, f"σ {row.sigma:.2f}", transform=axes.get_xaxis_transform(), fontsize=7)
    axes.set(xlabel="iteration", ylabel="alignment loss", ylim=(0, None))
    figure.savefig(path, dpi=110)


def save_video(frames: np.ndarray, path: Path, fps: int) -> None:
    """H.264 mp4 that browsers play; small frames are enlarged, odd sizes padded by the encoder's rule."""
    import imageio.v2 as imageio

    frames = enlarge(frames)
    frames = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
    part = Path(path).with_suffix(".part.mp4")
    with imageio.get_writer(part, fps=fps, codec="libx264", quality=8, macro_block_size=2) as writer:
        for frame in frames:
            writer.append_data(frame)  # type: ignore[attr-defined]
    part.replace(path)
