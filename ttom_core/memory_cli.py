"""`ttom memory`: look into a memory, tidy it, give entries away, take a pack in."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from .errors import TTOMError

if TYPE_CHECKING:
    from .memory.pack import ImportPlan
    from .memory.store import MemoryEntry, MemoryStore

SHOWN = 40  # rows of an import plan
MB = 1e6


def add_memory(commands: Any) -> None:
    """Add `memory` with its verbs to the subcommands of a parser."""
    memory = commands.add_parser("memory", help="list, search, tidy and share what was remembered")
    verbs = memory.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, run: Any, help: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = verbs.add_parser(name, help=help)
        parser.add_argument("--store", type=Path, metavar="FOLDER", help="default: memory_store/USER")
        parser.add_argument("--user", default="default", help="whose memory it is (default: default)")
        parser.set_defaults(run=run)
        return parser

    verb("list", _list, "all entries, the oldest first")

    show = verb("show", _show, "everything about one entry, as JSON")
    show.add_argument("id", help="an entry's id, or how it begins")

    search = verb("search", _search, "entries by words of their prompt, scene or note")
    search.add_argument("words", nargs="+")
    search.add_argument("--scene", action="store_true", help="the words are a prompt: find its structure")

    prune = verb("prune", _prune, "delete the least used entries down to a size; pinned ones stay")
    prune.add_argument("--max-entries", type=_size, metavar="N")
    prune.add_argument("--max-mb", type=_size, metavar="MB")
    prune.add_argument("--unused-days", type=_size, metavar="DAYS", help="what no read found for so long")

    fsck = verb("fsck", _fsck, "read and check everything")
    fsck.add_argument("--repair", action="store_true", help="delete damaged entries and orphaned files")

    verb("undo", _undo, "take back the last change")

    pin = verb("pin", _pin, "keep entries from ever being pruned")
    pin.add_argument("ids", nargs="+", metavar="ID")
    pin.add_argument("--off", action="store_true", help="no longer")

    delete = verb("delete", _delete, "delete entries")
    delete.add_argument("ids", nargs="*", metavar="ID")
    delete.add_argument("--search", metavar="WORDS", help="all entries with these words")

    export = verb("export", _export, "write entries as a pack, or one entry as a plain LoRA")
    export.add_argument("file", type=Path, help="NAME.ttompack, or NAME.safetensors for one entry")
    export.add_argument("ids", nargs="*", metavar="ID", help="default: all entries")
    export.add_argument("--search", metavar="WORDS", help="only entries with these words")
    export.add_argument("--licence", help="what others may do with the pack, for example CC0-1.0")
    export.add_argument(
        "--preview", action="append", default=[], metavar="ID=PICTURE", help="a picture of an entry"
    )

    take = verb("import", _import, "take in a pack; its plan is shown first")
    take.add_argument("file", type=Path)
    take.add_argument("--replace", action="store_true", help="let the pack win where it conflicts")
    take.add_argument("--yes", action="store_true", help="do not ask")


def _size(text: str) -> int:
    size = int(text)
    if size < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, not {size}")
    return size


def _folder(options: argparse.Namespace) -> tuple[Path, bool]:
    """The memory's folder, and whether one is there."""
    from .memory.store import DATABASE, default_folder

    folder = options.store or default_folder(options.user)
    return folder, (folder / DATABASE).is_file()


def opened(options: argparse.Namespace, write: bool = False) -> MemoryStore:
    """The memory, which must be there: only generating and importing make one."""
    from .memory.store import MemoryStore

    folder, there = _folder(options)
    if not there:
        raise TTOMError(f"There is no memory in {folder}; check the path, or import a pack to begin one.")
    return MemoryStore(folder, read_only=not write)


def _chosen(store: MemoryStore, options: argparse.Namespace) -> list[MemoryEntry]:
    """The entries of the ids, or those with the words of --search, or all."""
    if options.ids and options.search:
        raise TTOMError("Choose entries by their ids or by --search, not by both.")
    if options.ids:
        return [store.get(entry_id) for entry_id in options.ids]
    return list(store.entries(options.search))


# Looking ------------------------------------------------------------------------------------------


def _count(number: int) -> str:
    return f"{number} {'entry' if number == 1 else 'entries'}"


def _table(entries: Iterable[MemoryEntry]) -> None:
    from .memory.pack import printable

    print(f"{'id':8}  {'uses':>4}  pin  {'loss':15}  {'MB':>6}  prompt")
    for entry in entries:
        first, last = (f"{x:.3f}" if x is not None else "?" for x in (entry.loss_first, entry.loss_last))
        pin = "pin" if entry.pinned else ""
        line = f"{entry.id[:8]}  {entry.uses:4}  {pin:3}  {first + ' → ' + last:15}"
        print(f"{line}  {entry.value_bytes / MB:6.3f}  {printable(entry.prompt)[:80]}")


def _list(options: argparse.Namespace) -> None:
    with opened(options) as store:
        _table(store.entries())
        print(f"{_count(len(store))}, {store.value_bytes() / MB:.3f} MB, in {store.folder}")


def _show(options: argparse.Namespace) -> None:
    with opened(options) as store:
        entry = store.get(options.id)
    facts = {f.name: getattr(entry, f.name) for f in fields(entry) if f.name != "embedding"} | {
        "key": entry.key.model_dump(mode="json"),
        "layout": entry.layout and entry.layout.model_dump(mode="json"),
        "dimensions": len(entry.embedding),
    }
    print(json.dumps(facts, indent=1))  # ASCII: a stranger's text cannot steer the terminal


def _search(options: argparse.Namespace) -> None:
    words = " ".join(options.words)
    with opened(options) as store:
        if not options.scene:
            _table(store.entries(words))
            return
        from .memory.key import scene_key
        from .planner import plan

        key = scene_key(words, plan(words))
        print(f"entries of the structure {', '.join(key.structure)}:")
        _table(entry for entry in store.entries() if entry.key.digest == key.digest)


# Tidying ------------------------------------------------------------------------------------------


def _prune(options: argparse.Namespace) -> None:
    if options.max_entries is options.max_mb is options.unused_days is None:
        raise TTOMError("Say what to prune by: --max-entries, --max-mb or --unused-days.")
    days = options.unused_days
    with opened(options, write=True) as store:
        gone = store.prune(
            max_entries=options.max_entries,
            max_bytes=None if options.max_mb is None else int(options.max_mb * MB),
            unused_since=None if days is None else time.time() - 86400 * days,
        )
        print(f"deleted {len(gone)} of {_count(len(gone) + len(store))}")


def _fsck(options: argparse.Namespace) -> None:
    from .memory.pack import printable

    with opened(options, write=options.repair) as store:
        report = store.fsck(options.repair)
    for problem in report.problems:
        print(printable(problem))
    found = f"problems: {len(report.problems)}, orphaned files (harmless): {len(report.orphans)}"
    print(f"{_count(report.entries)} read, {found}")
    if report.repaired:
        print("repaired: damaged entries and orphaned files are deleted")
    elif report.problems:
        raise TTOMError("The memory is damaged; `ttom memory fsck --repair` deletes what cannot be saved.")


def _undo(options: argparse.Namespace) -> None:
    with opened(options, write=True) as store:
        print(store.undo())


def _pin(options: argparse.Namespace) -> None:
    with opened(options, write=True) as store:
        for entry_id in options.ids:
            entry = store.pin(entry_id, not options.off)
            print(f"{'pinned' if entry.pinned else 'unpinned'} {entry.id[:8]}")


def _delete(options: argparse.Namespace) -> None:
    if not options.ids and not options.search:
        raise TTOMError("Say what to delete: the ids of entries, or --search WORDS.")
    with opened(options, write=True) as store:
        gone = store.delete([entry.id for entry in _chosen(store, options)])
    print(f"deleted {_count(len(gone))}; `ttom memory undo` brings them back")


# Sharing ------------------------------------------------------------------------------------------


def _export(options: argparse.Namespace) -> None:
    from .memory.pack import export_lora, export_pack

    lora = options.file.suffix == ".safetensors"
    if not lora and not options.licence:
        raise TTOMError("Say with --licence what others may do with the pack, for example CC0-1.0.")
    with opened(options) as store:
        entries = _chosen(store, options)
        if lora:
            if len(entries) != 1:
                raise TTOMError(f"A LoRA file takes one entry, not {len(entries)}; give one id.")
            export_lora(store, entries[0], options.file)
        else:
            pairs = [text.partition("=") for text in options.preview]
            previews = {store.get(entry_id).id: picture for entry_id, _, picture in pairs}
            export_pack(store, entries, options.file, licence=options.licence, previews=previews)
    print(f"wrote {options.file}: {_count(len(entries))}")


def _import(options: argparse.Namespace) -> None:
    from .memory.pack import import_pack, plan_import
    from .memory.store import MemoryStore

    folder, there = _folder(options)
    with MemoryStore(folder, read_only=True) if there else nullcontext() as store:
        plan = plan_import(store, options.file)
    _tell(plan)
    count = plan.count("new") + (plan.count("conflicting") if options.replace else 0)
    if not count and not plan.count("incompatible"):
        print("nothing to import")
        return
    if count and not options.yes:
        _ask(f"Take {_count(count)} into {folder}?")
    with MemoryStore(folder) as store:
        ids = import_pack(store, plan, conflicts="replace" if options.replace else "keep")
    print(f"imported {_count(len(ids))}; `ttom memory undo` takes them back")


def _tell(plan: ImportPlan) -> None:
    from .memory.pack import Status, printable

    print(f"{plan.pack.path.name}, licence {printable(plan.pack.licence)}:")
    for row in plan.rows[:SHOWN]:
        print(f"  {row.status:12}  {row.entry.id[:8]}  {printable(row.entry.prompt)[:60]}")
    if len(plan.rows) > SHOWN:
        print(f"  and {len(plan.rows) - SHOWN} more")
    print(", ".join(f"{plan.count(status)} {status}" for status in get_args(Status)))


def _ask(question: str) -> None:
    """Go on after a yes."""
    try:
        answer = input(f"{question} [y/N] ")
    except EOFError:
        raise TTOMError("Nobody is there to say yes; repeat it with --yes.") from None
    if answer.strip().lower() not in ("y", "yes"):
        raise TTOMError("Nothing is imported, because the answer was not yes.")
