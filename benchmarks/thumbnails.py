"""A thumbnail for every shipped workflow: frames of the video it makes, with the planned boxes drawn.

    python -m benchmarks.thumbnails --comfyui FOLDER [--python ITS_PYTHON] [--workflows NAME …] [--out FOLDER]

Runs each workflow as it is, on the CPU in a ComfyUI of its own: no memory is left from another. Writes
workflows/NAME.jpg, the one name under which ComfyUI's template browser looks for a picture of
workflows/NAME.json.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from benchmarks.comfyui import SHIPPED, ask, demo_comfyui
from benchmarks.native import ROOT, node, outputs
from benchmarks.workflows import Graph, saved_prompt
from ttom_core.pictures import strip

WIDTH = 512  # about twice what the browser shows, for dense screens
MAX_BYTES = 60_000
COMPARED = ("first", "second", "third", "fourth")
PARTS = ("beginning", "middle", "end")


def clips_of(graph: Graph) -> dict[str, list]:
    """The clips in the video that a graph saves, by their labels: several where it compares."""
    save = next(row for row in graph.values() if row["class_type"] == "SaveVideo")
    shown = graph[save["inputs"]["video"][0]]["inputs"]["images"]
    inputs = graph[shown[0]]["inputs"]
    if graph[shown[0]]["class_type"] != "TTOM_Compare":
        return {"": shown}
    clips = [inputs[name] for name in COMPARED if name in inputs]
    return dict(zip(map(str.strip, inputs["labels"].split(",")), clips, strict=True))


def layout_of(graph: Graph, clip: list, info: Graph) -> list | None:
    """The nearest layout that a clip comes from, as a link; `info` is /object_info."""
    waiting = [clip[0]]
    for name in waiting:  # it grows on the way: the nearest first
        kinds = info[graph[name]["class_type"]]["output"]
        if "TTOM_LAYOUT" in kinds:
            return [name, kinds.index("TTOM_LAYOUT")]
        links = [value[0] for value in graph[name]["inputs"].values() if isinstance(value, list)]
        waiting += [link for link in links if link not in waiting]
    return None


def frames_of(graph: Graph, info: Graph, url: str, base: Path) -> dict[str, np.ndarray]:
    """The clips that a graph makes, uint8 [F, H, W, 3], with their layouts drawn."""
    clips, more = clips_of(graph), {}
    for place, clip in enumerate(clips.values()):
        if layout := layout_of(graph, clip, info):
            size = {"num_frames": 1, "width": 64, "height": 64}  # of no matter: the clip has its own
            more[f"drawn {place}"] = node("TTOM_LayoutPreview", layout=layout, images=clip, fps=8.0, **size)
            clip = [f"drawn {place}", 0]
        more[f"frames {place}"] = node("SaveImage", images=clip, filename_prefix=f"thumbnail_{place}")
    made = outputs(url, graph | more)
    files = [
        [base / "output" / f["filename"] for f in made[f"frames {p}"]["images"]] for p in range(len(clips))
    ]
    return {
        label: np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
        for label, paths in zip(clips, files, strict=True)
    }


def thumbnail(clips: dict[str, np.ndarray]) -> Image.Image:
    """A row a clip; one clip alone is told in three rows. About square, as the browser's cards are."""
    if len(clips) == 1:
        (frames,) = clips.values()
        clips = dict(zip(PARTS, np.array_split(frames, len(PARTS)), strict=True))
    sheet = strip(clips, columns=len(clips))
    sheet.thumbnail((WIDTH, 2 * WIDTH))
    return sheet


def jpeg(picture: Image.Image) -> bytes:
    """The best JPEG of a picture that is small enough to travel with the pack."""
    for quality in range(90, 0, -5):
        content = io.BytesIO()
        picture.save(content, "JPEG", quality=quality, optimize=True)
        if content.tell() <= MAX_BYTES:
            return content.getvalue()
    sys.exit(f"A thumbnail of {picture.width}×{picture.height} does not fit in {MAX_BYTES} bytes.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--workflows", nargs="+", choices=list(SHIPPED), default=list(SHIPPED))
    parser.add_argument("--out", type=Path, default=ROOT / "workflows")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in tqdm(options.workflows):
        with demo_comfyui(options.comfyui, options.python) as (url, base):
            info = ask(f"{url}/object_info")
            clips = frames_of(saved_prompt(SHIPPED[name], info), info, url, base)
        path = options.out / f"{name}.jpg"
        path.write_bytes(jpeg(thumbnail(clips)))
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
