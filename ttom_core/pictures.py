"""Pictures where people would rather look: layouts on frames, heat maps, strips, curves, videos.

Frames are uint8 [F, H, W, 3] throughout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .errors import TTOMError
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
    """Whole-number nearest-neighbour enlargement to at least `width`; larger frames stay.

    TTOMError when these are no frames: uint8 [F, H, W, 3], none of them 0.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size or frames.dtype != np.uint8:
        raise TTOMError(
            f"Frames must be uint8 [F, H, W, 3], not {frames.dtype} {list(frames.shape)}; convert them."
        )
    factor = max(1, -(-width // frames.shape[2]))
    return frames.repeat(factor, 1).repeat(factor, 2)


def draw_layout(frames: np.ndarray, layout: Layout) -> np.ndarray:
    """Each object's box and id on every frame, enlarged; one colour a phrase."""
    frames = enlarge(frames)
    _, height, width, _ = frames.shape
    boxes = layout.boxes(frame_times(len(frames)))
    phrases = layout.phrases
    drawn = []
    for f, frame in enumerate(frames):
        image = Image.fromarray(frame)
        draw = ImageDraw.Draw(image)
        for item, (x, y, w, h) in zip(layout.objects, boxes[:, f], strict=True):
            if np.isnan(x):
                continue
            colour = COLOURS[phrases.index(item.phrase) % len(COLOURS)]
            left, top = x * width, y * height
            right, bottom = max(left, left + w * width - 1), max(top, top + h * height - 1)
            draw.rectangle((left, top, right, bottom), outline=colour, width=max(2, width // 96))
            _label(draw, item.id, (left + 3, top + 2), colour, (width, height), right - left)
        drawn.append(np.asarray(image))
    return np.stack(drawn)


def _label(
    draw: ImageDraw.ImageDraw,
    text: str,
    place: tuple[float, float],
    colour: tuple[int, int, int],
    canvas: tuple[int, int],
    room: float,
) -> None:
    """Black on the box's colour, small where the box is, shifted so that its beginning shows."""
    size = max(11, canvas[0] // 20)
    if (wide := draw.textlength(text, font=ImageFont.load_default(size=size))) > room:
        size = max(9, int(size * room / wide))
    font = ImageFont.load_default(size=size)
    left, top, right, bottom = draw.textbbox(place, text, font=font)
    dx = max(min(0.0, canvas[0] - 2 - right), 2 - left)
    dy = min(0.0, canvas[1] - 2 - bottom)
    draw.rectangle((left - 2 + dx, top - 1 + dy, right + 2 + dx, bottom + 1 + dy), fill=colour)
    draw.text((place[0] + dx, place[1] + dy), text, fill=(0, 0, 0), font=font)


def heatmap(frames: np.ndarray, maps: np.ndarray, peak: float | None = None) -> np.ndarray:
    """Maps [τ, h, w] in colour over greyed frames; each frame takes its nearest latent frame's map.

    The brightest colour stands for `peak`, by default the largest value: pass one to compare maps.
    """
    from matplotlib import colormaps

    frames = enlarge(frames)
    maps = np.nan_to_num(np.asarray(maps, float))
    if maps.ndim != 3 or not maps.size:
        raise TTOMError(f"Maps must be [frames, height, width], not {list(maps.shape)}.")
    count, height, width, _ = frames.shape
    peak = max(float(maps.max()) if peak is None else peak, 1e-12)
    drawn = []
    for f, frame in enumerate(frames):
        latent = round(f / max(count - 1, 1) * (len(maps) - 1))
        level = Image.fromarray((maps[latent] / peak).clip(0, 1).astype(np.float32))
        smooth = np.asarray(level.resize((width, height), Image.Resampling.BICUBIC)).clip(0, 1)
        heat = colormaps["inferno"](smooth)[..., :3] * 255
        drawn.append(0.3 * frame.mean(-1, keepdims=True) + 0.7 * heat)
    return np.stack(drawn).clip(0, 255).astype(np.uint8)


def strip(rows: Mapping[str, np.ndarray], columns: int = 6) -> Image.Image:
    """Labelled rows of evenly spaced frames in one picture; a shorter clip shows all it has."""
    if not rows:
        raise TTOMError("A strip needs at least one row of frames.")
    big = {label: enlarge(frames, 128) for label, frames in rows.items()}
    columns = min(columns, max(len(frames) for frames in big.values()))
    height, width = (max(frames.shape[side] for frames in big.values()) for side in (1, 2))
    gap, top = 4, 26
    size = (columns * (width + gap) - gap, len(big) * (height + top))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=16)
    for r, (label, frames) in enumerate(big.items()):
        y = r * (height + top)
        draw.text((4, y + 4), label, fill="black", font=font)
        shown = np.linspace(0, len(frames) - 1, min(columns, len(frames))).round().astype(int)
        for c, f in enumerate(shown):
            sheet.paste(Image.fromarray(frames[f]), (c * (width + gap), y + top))
    return sheet


def beside(clips: Mapping[str, np.ndarray]) -> np.ndarray:
    """Labelled clips of one size and length beside each other, as the frames of one."""
    if len({frames.shape for frames in clips.values()}) != 1:
        raise TTOMError("Clips beside each other need one size and length; give at least one.")
    big = {label: enlarge(frames, 128) for label, frames in clips.items()}
    count, height, width, _ = next(iter(big.values())).shape
    gap, top = 4, 22
    sheet = Image.new("RGB", (len(big) * (width + gap) - gap, height + top), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    for place, label in enumerate(big):
        draw.text((place * (width + gap) + 3, 3), label, fill="black", font=font)
    drawn = np.stack([np.asarray(sheet)] * count)
    for place, frames in enumerate(big.values()):
        left = place * (width + gap)
        drawn[:, top:, left : left + width] = frames
    return drawn


def attention_change(
    frames: np.ndarray, before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Each phrase's maps [τ, h, w] over a clip, before and after the optimisation, beside each other.

    Within a phrase one colour stands for one value, so that the two can be compared.
    """
    clips = {}
    for phrase in before:
        peak = float(np.nanmax([before[phrase].max(), after[phrase].max()]))
        clips[f"{phrase}, before"] = heatmap(frames, before[phrase], peak)
        clips[f"{phrase}, after"] = heatmap(frames, after[phrase], peak)
    return beside(clips)


def loss_chart(
    losses: Sequence[float], steps: Sequence[int] | None = None, sigmas: Sequence[float] | None = None
) -> Image.Image:
    """The loss of every iteration; with each one's denoising step and noise level, these are marked."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 3.5), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(range(len(losses)), losses, marker=".", color="#0072B2")
    starts = [] if steps is None else [i for i in range(len(losses)) if i == 0 or steps[i - 1] != steps[i]]
    room = len(losses) / 10  # labels nearer than that would run into each other
    labelled = -room
    for index in starts:
        axes.axvline(index, color="0.8", zorder=0)
        if sigmas and index - labelled >= room:
            labelled = index
            axes.text(index, 1.01, f"σ {sigmas[index]:.2f}", transform=axes.get_xaxis_transform(), fontsize=7)
    axes.set(xlabel="iteration", ylabel="alignment loss")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def loss_curve(rows: Sequence[Any], path: str | Path) -> None:
    """The loss of every iteration (rows with step, sigma, loss) as a picture file."""
    chart = loss_chart([r.loss for r in rows], [r.step for r in rows], [r.sigma for r in rows])
    chart.save(path)


def relevance_chart(
    layers: Sequence[float], heads: Sequence[Sequence[float]], recommended: Sequence[int] = ()
) -> Image.Image:
    """A bar for each layer's mean soft IoU [L], a dot for each head's [L, H]; recommended ones are dark."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(max(5.0, 2 + 0.22 * len(layers)), 3.5), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    groups: dict[str, list[int]] = {"layer": [], "recommended layer": []}
    for layer in range(len(layers)):
        groups["recommended layer" if layer in recommended else "layer"].append(layer)
    for (label, members), colour in zip(groups.items(), ("#56B4E9", "#0072B2"), strict=True):
        if members:
            axes.bar(members, [layers[i] for i in members], width=0.7, color=colour, label=label)
    places = [layer for layer, row in enumerate(heads) for _ in row]
    values = [iou for row in heads for iou in row]
    axes.scatter(places, values, s=9, color="#D55E00", zorder=3, label="each head alone")
    axes.set(xlabel="layer", ylabel="soft IoU of attention and object")
    axes.set_ylim(0, max(0.05, 1.2 * max([*layers, *values])))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=20))
    axes.legend(loc="upper center", ncols=3, fontsize=8, frameon=False)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def relevance_strip(
    frames: np.ndarray,
    phrase: str,
    mask: np.ndarray,
    maps: np.ndarray,
    layers: Sequence[float],
    shown: int = 6,
) -> Image.Image:
    """A clip, where a phrase's object is in it (mask [τ, h, w]), and the best layers of maps [L, τ, h, w].

    Each frame of a map is stretched to its own contrast, as it is for `layers`, the soft IoU of each.
    """
    frames = enlarge(frames)
    low, high = maps.min((2, 3), keepdims=True), maps.max((2, 3), keepdims=True)
    maps = (maps - low) / np.maximum(high - low, 1e-12)
    best = sorted(range(len(layers)), key=lambda layer: -layers[layer])[:shown]
    seen = {f"layer {i}: {layers[i]:.2f}": heatmap(frames, maps[i], peak=1.0) for i in best}
    return strip({phrase: frames, "where it is": heatmap(frames, mask, peak=1.0)} | seen)


def interval_chart(
    panels: Mapping[str, Mapping[str, tuple[float, float, float]]], path: str | Path, reference: str = ""
) -> None:
    """A panel a quality, a row a method: the value as a dot in its interval (value, low, high).

    The reference's value is drawn through the others' rows, to be compared with.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not panels or not all(panels.values()):
        raise TTOMError("A chart needs at least one panel with one row.")
    names = list(next(iter(panels.values())))
    figure = Figure(figsize=(2.2 + 2.6 * len(panels), 1.1 + 0.28 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    colours = ("#0072B2", "#009E73", "#D55E00", "#CC79A7")
    for index, (axes, (title, rows)) in enumerate(zip(grid, panels.items(), strict=True)):
        for place, name in enumerate(names):
            value, low, high = rows[name]
            colour = colours[index % len(colours)]
            axes.plot([low, high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
            axes.plot([value], [place], marker="o", color=colour, markersize=5)
        if reference in rows:
            axes.axvline(rows[reference][0], color="0.75", linewidth=1, zorder=0)
        axes.set_title(title, fontsize=10)
        axes.tick_params(labelsize=8)
        axes.locator_params(axis="x", nbins=5)  # more would run into each other
    labels = [name.replace("_", " ").replace("$", r"\$") for name in names]
    grid[0].set_yticks(range(len(names)), labels)
    grid[0].set_ylim(len(names) - 0.5, -0.5)
    path = Path(path)
    part = path.with_name(path.name + ".part")
    figure.savefig(part, dpi=110, format="png", metadata={"Software": None})
    part.replace(path)


def save_video(frames: np.ndarray, path: str | Path, fps: float) -> None:
    """H.264 mp4 that browsers play, whole or not at all; small frames are enlarged.

    The codec wants even sides: an odd row or column is repeated.
    """
    import imageio.v2 as imageio

    if not fps > 0:
        raise TTOMError(f"A video needs more than 0 frames a second, not {fps}.")
    frames = enlarge(frames)
    _, height, width, _ = frames.shape
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    path = Path(path)
    part = path.with_name(path.stem + ".part.mp4")
    try:
        with imageio.get_writer(
            part,
            fps=fps,
            codec="libx264",
            quality=8,
            pixelformat="yuv420p",
            macro_block_size=2,
            output_params=["-movflags", "+faststart"],
        ) as writer:
            for frame in frames:
                writer.append_data(frame)  # type: ignore[attr-defined]
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
