"""The `ttom` command: plan a layout, generate a composed video, evaluate, look after a memory."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .doctor_cli import add_doctor, run_doctor
from .errors import TTOMError
from .evaluation.export_cli import add_export, add_score
from .memory_cli import add_memory
from .model_cli import add_model, clip_size, loaded, source_of
from .probe_cli import add_probe, read_prompts, run_probe

if TYPE_CHECKING:
    from pydantic import BaseModel

    from .backbones.base import Backbone
    from .generate import Generation
    from .layout import Layout
    from .memory.recall import Memory, MemorySettings
    from .optimize import TTOSettings
    from .planner import LLMSettings

T = TypeVar("T")
M = TypeVar("M", bound="BaseModel")

DEMO = Path(__file__).resolve().parent.parent / "demo"


def main(argv: list[str] | None = None) -> int:
    """Run one command; a user's mistake prints one sentence and returns 2, Ctrl-C returns 130."""
    options = _parser().parse_args(argv)
    try:
        options.run(options)
    except TTOMError as error:
        print(f"ttom: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ttom: interrupted; the model is as it was before.", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ttom", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    plan = commands.add_parser("plan", help="plan a layout for a prompt, or check one")
    plan.add_argument("prompt", nargs="?", help="may be left out with --check: the layout's own")
    plan.add_argument("--out", type=Path, help="write the layout as JSON here (default: print it)")
    plan.add_argument("--show", type=Path, metavar="PNG", help="draw the layout over empty frames")
    plan.add_argument("--check", type=Path, metavar="JSON", help="plan nothing: check this layout again")
    plan.add_argument("--seed", type=int, default=0)
    _language_model(plan)
    plan.set_defaults(run=_plan)

    generate = commands.add_parser("generate", help="make a composed video from a prompt")
    generate.add_argument("prompt")
    generate.add_argument("--layout", type=Path, help="a layout JSON (default: plan one)")
    generate.add_argument("--out", type=Path, default=Path("outputs/generate"))
    generate.add_argument("--no-base", action="store_true", help="skip the plain video to compare with")
    _clip(generate)
    _language_model(generate)
    _sampling(generate)
    _remembering(generate, "off")
    generate.set_defaults(run=_generate)

    stream = commands.add_parser("stream", help="make a file of prompts, each from what a memory knows")
    stream.add_argument("file", type=Path, help="one prompt a line")
    stream.add_argument(
        "--out", type=Path, default=Path("outputs/stream"), help="where an earlier run is continued"
    )
    _clip(stream)
    _sampling(stream)
    _remembering(stream, "learn")
    stream.set_defaults(run=_stream)

    consolidate = commands.add_parser(
        "consolidate", help="learn one adapter for each scene of a memory, that needs no optimising"
    )
    consolidate.add_argument("ids", nargs="*", metavar="ID", help="of entries (default: all)")
    consolidate.add_argument("--clips", type=int, default=32, help="to learn a scene from (default 32)")
    consolidate.add_argument("--store", type=Path, metavar="FOLDER", help="default: memory_store/USER")
    consolidate.add_argument("--user", default="default", help="whose memory it is (default: default)")
    _clip(consolidate)
    _sampling(consolidate)
    consolidate.set_defaults(run=_consolidate, preset="demo")

    evaluate = commands.add_parser("evaluate", help="score base against TTOM on held-out prompts")
    evaluate.add_argument("--prompts", type=Path, default=DEMO / "prompts" / "held_out.json")
    evaluate.add_argument("--limit", type=int, help="only the first N prompts")
    evaluate.add_argument("--out", type=Path, default=Path("outputs/evaluate"))
    evaluate.add_argument(
        "--workers", type=int, help="processes of one thread each (default: one a core, or one on a GPU)"
    )
    evaluate.add_argument("--pictures", action="store_true", help="keep a before-and-after strip of each")
    evaluate.add_argument("--result", type=Path, metavar="JSON", help="also write the result file")
    _sampling(evaluate)
    evaluate.set_defaults(run=_evaluate)

    for benchmark in add_export(commands):
        _clip(benchmark)
        _language_model(benchmark)
        _sampling(benchmark)
        benchmark.set_defaults(run=_export)
    add_score(commands)

    probe = add_probe(commands, DEMO / "model")
    _clip(probe)
    probe.set_defaults(run=_probe)

    doctor = add_doctor(commands, DEMO / "model")
    doctor.set_defaults(run=_doctor)

    add_memory(commands)

    convert = commands.add_parser(
        "convert", help="rename a Wan or CogVideoX transformer for ComfyUI's loader, or back"
    )
    convert.add_argument("source", type=Path, help="a diffusers folder, or a file of models/diffusion_models")
    convert.add_argument("target", type=Path, help="a new safetensors file")
    convert.set_defaults(run=_convert)
    return parser


def _clip(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--frames", type=int, help="clip length (default: as in the model's clip.json, or 21)"
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("WIDTH", "HEIGHT"),
        help="(default: as in the model's clip.json, or 64 64)",
    )
    parser.add_argument("--guidance", type=float, default=4.0, help="classifier-free guidance scale")
    parser.add_argument("--negative", default="", help="negative prompt")


def _clip_settings(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "steps": options.steps,
        "guidance_scale": options.guidance,
        "negative_prompt": options.negative,
        **clip_size(options),
    }


def _language_model(parser: argparse.ArgumentParser) -> None:
    """Its key comes from the environment: it stands in no command, and so in no shell's history."""
    parser.add_argument("--llm", metavar="MODEL", help="plan with a language model (default: by the rules)")
    parser.add_argument("--base-url", metavar="URL", help="its server (default: OPENAI_BASE_URL, or OpenAI)")
    parser.add_argument("--key-variable", metavar="NAME", help="environment variable with the server's key")
    parser.add_argument("--mode", choices=("staged", "one-call"), default="staged")
    parser.add_argument("--enrich", action="store_true", help="lay out, and encode, a fuller description")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for one answer (default 120)")
    parser.add_argument(
        "--prices",
        type=float,
        nargs=2,
        metavar=("IN", "OUT"),
        help="USD per million tokens, for the cost",
    )
    parser.add_argument("--fallback", action="store_true", help="plan by the rules where the model fails")
    parser.add_argument("--no-cache", action="store_true", help="ask anew, and keep nothing")
    parser.add_argument("--unload", action="store_true", help="free an Ollama server's memory afterwards")


def _sampling(parser: argparse.ArgumentParser) -> None:
    add_model(parser, DEMO / "model")
    parser.add_argument(
        "--preset",
        default="best",
        help="best, demo (the adapter alone), paper, released, or the rivals lvd, latent and noise "
        "(default: best)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change one setting of the preset, e.g. --set iterations=4 or --set latents.step_size=0.01",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=20, help="denoising steps (default 20)")


def _remembering(parser: argparse.ArgumentParser, mode: str) -> None:
    parser.add_argument(
        "--memory",
        choices=("off", "read", "start", "learn"),
        default=mode,
        help="read: use what a memory knows as it is; start: optimise from there; learn: and keep the "
        f"result (default: {mode})",
    )
    parser.add_argument("--store", type=Path, metavar="FOLDER", help="default: memory_store/USER")
    parser.add_argument("--user", default="default", help="whose memory it is (default: default)")
    parser.add_argument(
        "--threshold", type=float, default=0.5, help="least similarity of a hit (default 0.5)"
    )
    parser.add_argument("--top-k", type=int, default=5, help="hits that are averaged (default 5)")
    parser.add_argument("--on-hit", choices=("update", "replace", "insert"), default="update")
    parser.add_argument(
        "--other-copies",
        action="store_true",
        help="use what other copies of the model made too, of its family and size: fp16, fp8, GGUF",
    )
    parser.add_argument(
        "--embedder", default="pipeline", help="pipeline, clip or sentence-transformers, or KIND:MODEL"
    )


def _validated(model: type[M], values: dict[str, Any]) -> M:
    """A pydantic model of these values; TTOMError with the first that is wrong."""
    from pydantic import ValidationError

    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise TTOMError(f"Setting {'.'.join(map(str, first['loc']))}: {first['msg']}.") from error


@contextmanager
def _memory(options: argparse.Namespace, backbone: Any) -> Iterator[tuple[Memory | None, MemorySettings]]:
    """The memory that the options name, open for as long as the block runs, and how to use it."""
    from .memory.embedding import text_embedder
    from .memory.recall import Memory, MemorySettings
    from .memory.store import MemoryStore, default_folder

    values = {"mode": options.memory, "threshold": options.threshold, "top_k": options.top_k}
    use = _validated(MemorySettings, values | {"on_hit": options.on_hit})
    if use.mode == "off":
        yield None, use
        return
    folder = options.store or default_folder(options.user)
    read_only, copies = use.mode == "read", options.other_copies
    with MemoryStore(folder, read_only=read_only, other_copies=copies) as store:
        yield Memory(store, text_embedder(options.embedder, backbone.pipeline)), use


def _settings(options: argparse.Namespace) -> TTOSettings:
    """The preset with the changes of `--set`, each value read as JSON where it is JSON."""
    from .optimize import PRESETS, TTOSettings

    if options.preset not in PRESETS:
        raise TTOMError(f"There is no preset {options.preset!r}; choose one of {', '.join(PRESETS)}.")
    values: dict[str, Any] = PRESETS[options.preset].model_dump()
    for change in options.set:
        name, sign, text = change.partition("=")
        *groups, leaf = name.split(".")
        place: Any = values
        for group in groups:
            place = place.get(group) if isinstance(place, dict) else None
        if not sign or not isinstance(place, dict) or leaf not in place:
            known = ", ".join(_names(values))
            raise TTOMError(f"--set {change!r} names no setting; write NAME=VALUE with one of {known}.")
        if change == "layers=probed":
            from .probe import chosen_layers

            place[leaf] = chosen_layers(text, loaded(options).fingerprint)
            continue
        if change == "layers=default":
            place[leaf] = loaded(options).default_layers()
            continue
        try:
            place[leaf] = json.loads(text)
        except ValueError:
            place[leaf] = text
    return _validated(TTOSettings, values)


def _names(values: dict[str, Any], group: str = "") -> Iterator[str]:
    """The names of all settings, those of a group behind a dot."""
    for name, value in values.items():
        yield group + name
        if isinstance(value, dict):
            yield from _names(value, f"{group}{name}.")


def _tell(layout: Layout) -> None:
    print(f"layout by {layout.planner}: {', '.join(o.id + ' = ' + o.name for o in layout.objects)}")
    for sentence in layout.unresolved:
        print(f"  note: {sentence}")


def _quiet() -> None:
    """Leave the terminal to our own bars: a model's parts load without one each."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def _plan(options: argparse.Namespace) -> None:
    import numpy as np

    from .layout import Layout
    from .pictures import draw_layout, strip
    from .planner import check

    if options.check:
        layout = Layout.load(options.check)
        faults = check(layout, options.prompt or layout.prompt)
    else:
        layout, faults = _propose(options)
    if options.out:
        layout.save(options.out)
        _tell(layout)
    elif not options.check:
        print(layout.to_json())
    if options.show:
        canvas = np.full((21, 64, 64, 3), 245, np.uint8)
        options.show.parent.mkdir(parents=True, exist_ok=True)
        strip({"layout": draw_layout(canvas, layout)}).save(options.show)
    for sentence in faults:
        print(f"  check: {sentence}", file=sys.stderr)
    if options.check and faults:
        raise TTOMError(f"{options.check} does not obey its prompt; mend what the checks name, or plan anew.")


def _propose(options: argparse.Namespace) -> tuple[Layout, list[str]]:
    """The layout that was asked for, and what its checks found beside what it says itself."""
    from .planner import propose, unload
    from .planner.cache import default_folder

    settings = _llm_settings(options) if options.llm else None
    if options.base_url and not settings:
        raise TTOMError("--base-url names a server and no model; add --llm MODEL.")
    folder = None if options.no_cache else default_folder()
    plan = propose(options.prompt or "", options.seed, settings, folder=folder, fallback=options.fallback)
    if settings:
        used = plan.usage
        cost = "" if used.cost is None else f", {used.cost:.4f} USD"
        source = "from the cache" if plan.cached else f"{used.requests} answers, {plan.reasks} asked again"
        tokens = f"{used.input_tokens} + {used.output_tokens} tokens"
        print(f"plan by {plan.layout.planner}: {source}, {tokens}{cost}", file=sys.stderr)
        for sentence in plan.repaired:
            print(f"  repaired: {sentence}", file=sys.stderr)
        if options.unload:
            unload(settings)
    return plan.layout, [fault for fault in plan.faults if fault not in plan.layout.unresolved]


def _llm_settings(options: argparse.Namespace) -> LLMSettings:
    from .planner import LLMSettings

    prices = options.prices or (None, None)
    return LLMSettings.checked(
        model=options.llm,
        base_url=options.base_url,
        key_variable=options.key_variable,
        staged=options.mode == "staged",
        enrich=options.enrich,
        temperature=options.temperature,
        timeout=options.timeout,
        input_price=prices[0],
        output_price=prices[1],
    )


def _generate(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from .forecast import Clip, fitted
    from .generate import Progress, generate
    from .layout import Layout
    from .stream import generate_with_memory

    _quiet()
    settings = _settings(options)
    layout = Layout.load(options.layout) if options.layout else _propose(options)[0]
    # A description that a language model wrote is what both videos are made from.
    prompt = (layout.prompt if options.llm else "") or options.prompt
    _tell(layout)
    backbone = loaded(options)

    print(f"memory: {fitted(backbone, Clip(**clip_size(options)), settings)}")

    def run(label: str, make: Callable[..., T], *of: Any, **more: Any) -> T:
        with tqdm(desc=label, leave=True) as bar:

            def advance(progress: Progress) -> None:
                bar.total = progress.total
                bar.n = progress.done
                loss = "" if progress.loss is None else f", loss {progress.loss:.3f}"
                bar.set_postfix_str(progress.message + loss)

            return make(
                backbone,
                prompt,
                *of,
                seed=options.seed,
                on_progress=advance,
                **_clip_settings(options),
                **more,
            )

    with _memory(options, backbone) as memory:
        base = None if options.no_base else run("base", generate)
        made = run("TTOM", generate_with_memory, layout, settings, *memory, keep_maps=True)
    if known := made.recall:
        if known.common and settings.iterations and options.memory != "read":
            print("from memory: the optimisation started from what all scenes share")
        else:
            for hit in known.hits:
                print(f"from memory {hit.entry.id[:8]}: {hit.why}")
    if made.change:
        print(f"memory: {made.change}")
    _write(options.out, backbone, layout, base, made.generation)
    print(f"wrote {options.out}/: " + ", ".join(sorted(p.name for p in options.out.iterdir())))


def _write(
    out: Path, backbone: Backbone, layout: Layout, base: Generation | None, composed: Generation
) -> None:
    """The video, the pictures people look at, and a JSON of every setting and seed."""
    from .pictures import draw_layout, heatmap, loss_curve, save_video, strip

    out.mkdir(parents=True, exist_ok=True)
    trace = composed.trace
    assert trace is not None
    save_video(composed.frames, out / "video.mp4", backbone.fps)
    save_video(draw_layout(composed.frames, layout), out / "layout.mp4", backbone.fps)
    rows = {"base": base.frames} if base else {}
    strip(rows | {"TTOM": composed.frames}).save(out / "before_after.png")
    if base:
        save_video(base.frames, out / "base.mp4", backbone.fps)
    layouts = {"base": draw_layout(base.frames, layout)} if base else {}
    strip(layouts | {"TTOM": draw_layout(composed.frames, layout)}).save(out / "layout.png")
    layout.save(out / "layout.json")
    befores, afters = trace.maps_before or {}, trace.maps_after or {}
    for phrase in befores:
        name = "attention_" + "_".join(phrase.split())
        before = heatmap(composed.frames, befores[phrase])
        after = heatmap(composed.frames, afters[phrase])
        strip({"before": before, "after": after}).save(out / f"{name}.png")
    if trace.curve:
        loss_curve(trace.curve, out / "loss.png")
    if composed.adapter is not None:
        composed.adapter.save(out / "adapter.safetensors")
    record = {
        **composed.settings,
        "layout": json.loads(layout.to_json()),
        "seconds": {"ttom": composed.seconds, "base": base.seconds if base else None},
        "loss": [list(row) for row in trace.rows],
        "latent_loss": [list(row) for row in trace.latent_rows],
    }
    (out / "settings.json").write_text(json.dumps(record, indent=1))


def _stream(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from .pictures import save_video
    from .stream import Row, stream

    _quiet()
    settings = _settings(options)
    prompts = read_prompts(options.file)
    backbone = loaded(options)

    def keep(index: int, made: Generation) -> None:
        save_video(made.frames, options.out / f"{index:05}.mp4", backbone.fps)

    def told(row: Row) -> str:
        similarity = "–" if row.similarity is None else f"{row.similarity:.2f}"
        loss = "–" if row.loss_first is None else f"{row.loss_first:.3f} → {row.loss_last:.3f}"
        return (
            f"{row.index + 1:5}  {row.hits:4}  {similarity:>10}  {loss:>15}  {row.seconds:7.1f}  "
            f"{row.change or '–':15}  {row.prompt}"
        )

    with _memory(options, backbone) as (memory, use):
        print("    #  hits  similarity             loss  seconds  memory           prompt")
        rows = stream(
            backbone, prompts, settings, memory, use, options.out,
            seed=options.seed, on_clip=keep, **_clip_settings(options),
        )  # fmt: skip
        for row in tqdm(rows, total=len(prompts), desc="stream"):
            tqdm.write(told(row))


def _probe(options: argparse.Namespace) -> None:
    _quiet()
    run_probe(options)


def _doctor(options: argparse.Namespace) -> None:
    _quiet()
    print(run_doctor(options))


def _consolidate(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from .memory.pack import printable
    from .memory_cli import opened
    from .scenes import consolidate_scene, scenes_of, share

    settings, sampling = _settings(options), _clip_settings(options)
    with opened(options, write=True) as store:
        chosen = [store.get(entry_id) for entry_id in options.ids] or list(store.entries())
        backbone = loaded(options)
        for entries in scenes_of(chosen, backbone.fingerprint):
            with tqdm(total=options.clips, unit="clip", desc=printable(entries[0].key.sentence)) as bar:

                def tell(done: int, total: int, loss: float, bar: Any = bar) -> None:
                    bar.set_postfix(loss=f"{loss:.3f}")
                    bar.update()

                made, first, last = consolidate_scene(
                    backbone,
                    store,
                    entries,
                    settings,
                    clips=options.clips,
                    seed=options.seed,
                    on_progress=tell,
                    **sampling,
                )
            what = f"became {made.id[:8]}" if made else "kept as they were"
            print(f"{len(entries)} {what}: loss {first:.3f} → {last:.3f}")
        for made in share(store, backbone.fingerprint):
            print(f"{made.note}: {made.id[:8]}")


def _evaluate(options: argparse.Namespace) -> None:
    from .evaluation.evaluate import evaluate, figures, load_prompts, markdown
    from .evaluation.pool import backbone_of, identity_of, progress

    _quiet()
    source, methods = source_of(options), {"base": None, "ttom": _settings(options)}
    prompts = load_prompts(options.prompts, options.limit)
    with progress("evaluate") as on_row:
        rows = evaluate(
            source,
            prompts,
            methods,
            options.out / "rows.jsonl",
            seed=options.seed,
            steps=options.steps,
            workers=options.workers,
            pictures=options.out / "strips" if options.pictures else None,
            on_row=on_row,
        )
    table = figures(rows, [("ttom", "base")])
    print(markdown(table))
    if options.result:
        # The benchmarks' own writer adds the commit and the machine; outside a clone there is neither.
        from .evaluation.results import write_result

        settings = {
            "prompts": options.prompts.stem,
            "model": identity_of(backbone_of(source)),
            "steps": options.steps,
            "methods": {name: use.model_dump(mode="json") if use else None for name, use in methods.items()},
        }
        limit = "" if options.limit is None else f" --limit {options.limit}"
        command = (
            f"ttom evaluate --preset {options.preset} --seed {options.seed} --steps {options.steps}{limit}"
        )
        write_result(options.result, command, options.seed, table, settings)


def _convert(options: argparse.Namespace) -> None:
    from .backbones.names import convert

    count = convert(options.source, options.target)
    print(f"wrote {options.target} with {count} tensors")


def _export(options: argparse.Namespace) -> None:
    from .evaluation.export_cli import run_export

    _quiet()
    planner = _llm_settings(options).key_parts() if options.llm else {"rules": True}
    settings = None if options.base else _settings(options)

    def plan(prompt: str) -> Layout:
        return _propose(argparse.Namespace(**(vars(options) | {"prompt": prompt})))[0]

    run_export(options, lambda _: loaded(options), settings, _clip_settings(options), plan, planner)


if __name__ == "__main__":
    sys.exit(main())
