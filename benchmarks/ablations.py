"""What each setting of the optimisation does, on the demo model: one table and one chart a question.

    python benchmarks/ablations.py losses        # one table; `list` names them
    python benchmarks/ablations.py all           # every table

The paper's tables are made on held-out prompts, the questions that it leaves open, from which presets are
chosen, on the tuning prompts. Every variant is the demo preset with one change. Resumable: a clip is a line
in rows.jsonl, and tables share their clips. Writes results/ablation_NAME.json and .png, which fewer prompts
or steps replace only with --force. The paper's table 1 is benchmarks/evidence.py, its tables 3, 4 and 6 are
benchmarks/memory_quality.py.

A variant takes about 20 s of one core a prompt: at 84 prompts one of 4 new variants half an hour on four
cores, and all tables 5 hours.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ttom_core.errors import TTOMError
from ttom_core.evaluation.comparison import Comparison, against, compare
from ttom_core.evaluation.evaluate import load_prompts
from ttom_core.evaluation.pool import backbone_of, progress
from ttom_core.evaluation.results import insist_on_more
from ttom_core.optimize import PRESETS, TTOSettings

ROOT = Path(__file__).resolve().parent.parent
DEMO = PRESETS["demo"]


def changed(**changes: Any) -> TTOSettings:
    """The demo preset with some settings changed, checked anew."""
    return TTOSettings.model_validate(DEMO.model_dump() | changes)


def word(value: Any) -> str:
    """A value as a part of a name."""
    words = {None: "none", True: "yes", False: "no"}
    # By identity: 1 == True, and 0.0 == False.
    for known, text in words.items():
        if value is known:
            return text
    return f"{value:g}" if isinstance(value, float) else str(value)


def varied(question: str, setting: str, values: Sequence[Any], split: str = "tuning") -> Comparison:
    """One setting at these values and at the preset's own, which the others are compared with."""
    own = getattr(DEMO, setting)
    chosen = [*values] if own in values else [*values, own]
    methods = {f"{setting}_{word(value)}": changed(**{setting: value}) for value in chosen}
    return Comparison(question, methods, against(f"{setting}_{word(own)}", methods), split)


def several(question: str, own: str, methods: dict[str, TTOSettings], split: str = "tuning") -> Comparison:
    """Variants of several settings each, beside the one that is the preset."""
    assert methods[own] == DEMO, f"{own} is not the demo preset"
    return Comparison(question, methods, against(own, methods), split)


def tables(layers: int, sigmas: Sequence[float]) -> dict[str, Comparison]:
    """Every question by name, for a model of this many layers on this schedule of noise levels."""
    scale, rate = DEMO.alpha / DEMO.rank, DEMO.learning_rate
    ranks = {f"rank_{r}": changed(rank=r, alpha=r * scale) for r in sorted({2, 4, 8, 16, 32, DEMO.rank})}
    scales = {f"scale_{s:g}": changed(alpha=DEMO.rank * s) for s in sorted({0.5, 1.0, 2.0, 4.0, scale})}
    rates = [rate * factor for factor in (0.25, 0.5, 1, 2, 4)]
    optimised = sum(sigma >= DEMO.sigma_end - 1e-4 for sigma in sigmas)
    counts = sorted({1, 3, 5, 7, optimised, optimised + 3} & set(range(1, len(sigmas) + 1)))
    # As in the preset, the adapter acts as long as it is optimised.
    ends = {n: DEMO.sigma_end if n == optimised else round(sigmas[n - 1], 4) for n in counts}
    ranges = {f"steps_{n}": changed(sigma_end=end, adapter_until_sigma=end) for n, end in ends.items()}
    every, half = tuple(range(layers)), layers // 2
    chosen = {"all": every, "first_half": every[:half], "second_half": every[half:]}
    chosen |= {f"layer_{i}": (i,) for i in every}
    by_layer = {"preset": DEMO} | {name: changed(layers=some) for name, some in chosen.items() if some}
    # At all layers `selected` would be `reachable`.
    scopes = {"features": DEMO} | {scope: changed(scope=scope) for scope in ("reachable", "maps")}
    scopes |= {f"deep_{s}": changed(layers=every[half:], scope=s) for s in ("reachable", "selected")}
    # No early stop: 0.03 is a divergence, and would be something else in the other two.
    losses = {name: changed(objective=name, stop_loss=None) for name in ("jsd", "bce", "center_of_mass")}
    iterations = varied("Table 8: how many iterations?", "iterations", (2, 4, 8, 12, 16), "held_out")
    papers = tuple(("iterations_8", f"iterations_{other}") for other in (4, 12, 16))
    return {
        "losses": Comparison("Table 5: which loss?", losses, against("jsd", losses), "held_out"),
        "steps": several("Table 7: how many optimised steps?", f"steps_{optimised}", ranges, "held_out"),
        "iterations": replace(iterations, pairs=tuple(dict.fromkeys((*iterations.pairs, *papers)))),
        "layers": several("Which layers?", "preset", by_layer),
        "rank": several("Which rank, at one scale?", f"rank_{DEMO.rank}", ranks),
        "alpha": several("Which scale alpha/rank?", f"scale_{scale:g}", scales),
        "rate": varied("Which learning rate?", "learning_rate", rates),
        "until": varied("To which noise level does it act?", "adapter_until_sigma", (0.0, 0.5, 0.9)),
        "mask": varied("Which kind of soft mask?", "mask_kind", ("gaussian", "blurred_box", "hard_box")),
        "normalisation": varied("Normalise each frame or the volume?", "normalize_over", ("frame", "volume")),
        "scope": several("Adapt what?", "features", scopes),
        "optimiser": varied("Does AdamW forget between steps?", "reset_optimizer", (False, True)),
        "stop": varied("Below which loss does a step stop?", "stop_loss", (None, 0.03, 0.06, 0.12)),
        "freeze": varied("Does A learn too?", "freeze_a", (False, True)),
    }  # fmt: skip


def prompts_of(split: str, limit: int | None) -> list[dict[str, Any]]:
    return load_prompts(ROOT / "demo" / "prompts" / f"{split}.json", limit)


def run(options: argparse.Namespace) -> None:
    backbone = backbone_of(options.model)
    known = tables(backbone.num_layers, backbone.sigmas(options.steps))
    if options.table == "list":
        for name, table in known.items():
            print(f"{name:15} {table.question} {len(table.methods)} variants on {table.split} prompts")
        return
    if options.table != "all" and options.table not in known:
        raise TTOMError(f"There is no table {options.table!r}; choose all, list, {', '.join(known)}.")
    clips = f"--limit {options.limit} --steps {options.steps}"
    chosen = known if options.table == "all" else {options.table: known[options.table]}
    for name, table in chosen.items():
        if not options.force:
            count = len(prompts_of(table.split, options.limit))
            insist_on_more(options.results / f"ablation_{name}.json", count, options.steps)
    for name, table in chosen.items():
        with progress(name) as on_row:
            figures = compare(
                f"ablation_{name}",
                table,
                options.model,
                prompts_of(table.split, options.limit),
                options.out / "rows.jsonl",
                options.results,
                command=f"python benchmarks/ablations.py {name} {clips}",
                steps=options.steps,
                workers=options.workers,
                on_row=on_row,
            )
        print(table.question)
        for method in table.methods:
            cells = [figures[f"{method}_{q}"] for q in ("composition", "presence", "distortion")]
            text = "  ".join(f"{f['value']:.3f} ({f['low']:.3f}–{f['high']:.3f})" for f in cells)
            print(f"  {method:28} {text}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("table", help="a table's name, all or list")
    parser.add_argument("--model", default=str(ROOT / "demo" / "model"))
    parser.add_argument("--limit", type=int, default=84, help="prompts a table (default 84)")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps (default 20)")
    parser.add_argument("--workers", type=int, help="processes of one thread each (default: the cores)")
    parser.add_argument("--out", type=Path, default=Path("outputs/evidence"), help="of the rows")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--force", action="store_true", help="replace a result that tells of more")
    try:
        run(parser.parse_args(arguments))
    except TTOMError as error:
        print(f"ablations: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ablations: interrupted; the same command goes on from here.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
