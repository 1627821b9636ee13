"""`ttom memory` from end to end on a small memory, and its answers to mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ttom_core.adapter import Adapter
from ttom_core.cli import main
from ttom_core.memory import store as store_module
from ttom_core.memory.pack import read_pack
from ttom_core.memory.store import MemoryStore, MemoryStoreError, default_folder

GOLDEN = Path(__file__).parent / "golden" / "memory.ttompack"
RED, BLUE = 32 * "1", 32 * "2"  # the golden pack's entries


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "memory"


@pytest.fixture
def run(folder, capsys):
    """Run `ttom memory …` on the folder; what it printed, or the sentence it ended with."""

    def run(verb, *arguments, fails=False):
        capsys.readouterr()
        status = main(["memory", verb, *map(str, arguments), "--store", str(folder)])
        said = capsys.readouterr()
        assert status == (2 if fails else 0), said.err
        if fails:
            assert said.err.startswith("ttom: ")
            assert said.err.count("\n") == 1
            return said.err
        return said.out

    return run


@pytest.fixture
def filled(run):
    run("import", GOLDEN, "--yes")
    return run


def test_a_memory_is_listed_shown_and_searched(filled):
    listed = filled("list")
    assert "a red circle moves to the right" in listed
    assert "2 entries" in listed
    shown = json.loads(filled("show", "1111"))
    assert shown["id"] == RED
    assert shown["key"]["structure"] == ["count:A:1", "motion:A:right"]
    assert "a blue square" in filled("search", "SQUARE", "up")
    assert "a red circle" not in filled("search", "square")
    alike = filled("search", "--scene", "a", "green", "triangle", "moves", "right")
    assert "a red circle" in alike
    assert "a blue square" not in alike


def test_looking_changes_nothing(filled, folder):
    with MemoryStore(folder, read_only=True) as store:
        before = (store.state, list(store.entries()))
        for verb in (["list"], ["show", "2"], ["search", "circle"], ["fsck"]):
            filled(*verb)
        assert (store.state, list(store.entries())) == before


def test_entries_are_pinned_pruned_deleted_and_brought_back(filled, folder):
    filled("pin", "2222")
    assert "deleted 1 of 2 entries" in filled("prune", "--max-entries", 1)
    assert "a blue square" in filled("list")
    assert "is undone" in filled("undo")
    filled("pin", "2222", "--off")
    assert "deleted 1 entry" in filled("delete", "--search", "square")
    assert "2222" not in filled("list")
    filled("undo")
    assert "deleted 2 entries" in filled("delete", RED, BLUE)
    filled("undo")
    assert "deleted 2 of 2" in filled("prune", "--unused-days", 1)
    filled("undo")
    assert "deleted 0 of 2" in filled("prune", "--max-mb", 1)


def test_damage_is_found_and_repaired(filled, folder):
    assert "problems: 0, orphaned files (harmless): 0" in filled("fsck")
    with MemoryStore(folder, read_only=True) as store:
        store.value_path(store.get(RED).value).unlink()
    assert "fsck --repair" in filled("fsck", fails=True)
    assert "repaired" in filled("fsck", "--repair")
    assert "1 entry read, problems: 0" in filled("fsck")


def test_a_pack_and_a_lora_go_out(filled, tmp_path):
    pack, lora = tmp_path / "pack.ttompack", tmp_path / "lora.safetensors"
    assert "2 entries" in filled("export", pack, "--licence", "CC0-1.0")
    assert [entry.id for entry in read_pack(pack).entries] == [RED, BLUE]
    (tmp_path / "p.gif").write_bytes(b"GIF89a")
    filled("export", pack, "2222", "--licence", "CC0-1.0", "--preview", f"2222={tmp_path / 'p.gif'}")
    assert read_pack(pack).preview(BLUE) == b"GIF89a"
    filled("export", pack, "--search", "red", "--licence", "CC0-1.0")
    assert [entry.id for entry in read_pack(pack).entries] == [RED]
    filled("export", lora, "1111")
    assert Adapter.load(lora).scaling == 1


def test_an_import_shows_its_plan_and_asks(run, folder, monkeypatch):
    asked = []

    def answer(word):
        return lambda question: asked.append(question) or word

    monkeypatch.setattr("builtins.input", answer("no"))
    assert "not yes" in run("import", GOLDEN, fails=True)
    assert not folder.exists(), "nothing is made before the answer"
    monkeypatch.setattr("builtins.input", answer("y"))
    said = run("import", GOLDEN)
    assert "Take 2 entries" in asked[-1]
    assert "licence CC0-1.0" in said
    assert "2 new, 0 same, 0 conflicting, 0 incompatible" in said
    assert "nothing to import" in run("import", GOLDEN)
    assert len(asked) == 2


def test_conflicts_stay_unless_they_are_to_be_replaced(filled, folder):
    with MemoryStore(folder) as store:
        theirs = store.get(RED).value
        mine = store.update(RED, store.load(store.get(BLUE))).value
    assert "1 same, 1 conflicting" in filled("import", GOLDEN, "--yes")
    with MemoryStore(folder, read_only=True) as store:
        assert store.get(RED).value == mine
    filled("import", GOLDEN, "--yes", "--replace")
    with MemoryStore(folder, read_only=True) as store:
        assert store.get(RED).value == theirs


def test_nobody_to_ask_is_an_error(run, folder, monkeypatch):
    def nobody(question):
        raise EOFError

    monkeypatch.setattr("builtins.input", nobody)
    assert "repeat it with --yes" in run("import", GOLDEN, fails=True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show", "9999"], "no memory entry '9999'"),
        (["pin", "9999"], "no memory entry '9999'"),
        (["delete"], "Say what to delete"),
        (["delete", "1111", "--search", "x"], "not by both"),
        (["prune"], "Say what to prune by"),
        (["export", "x.ttompack"], "--licence"),
        (["export", "x.ttompack", "--search", "nothing", "--licence", "CC0-1.0"], "no entry to export"),
        (["export", "x.safetensors"], "takes one entry, not 2"),
        (["export", "x.ttompack", "--licence", "CC0-1.0", "--preview", "1111"], "preview"),
        (["import", "missing.ttompack"], "no pack at missing.ttompack"),
        (["search", "--scene", " "], "empty"),
    ],
)
def test_mistakes_get_one_sentence(filled, arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words in filled(*arguments, fails=True)


@pytest.mark.parametrize("verb", ["list", "fsck", "undo", "prune"])
def test_looking_for_a_memory_makes_none(run, folder, verb):
    options = ["--max-entries", "1"] if verb == "prune" else []
    assert "There is no memory in" in run(verb, *options, fails=True)
    assert not folder.exists()


def test_each_user_has_a_memory_beside_the_package_or_in_the_working_folder(tmp_path, monkeypatch):
    root = Path(store_module.__file__).resolve().parents[2]
    assert default_folder("ann") == root / "memory_store" / "ann"
    installed = tmp_path / "site-packages" / "ttom_core" / "memory" / "store.py"
    monkeypatch.setattr(store_module, "__file__", str(installed))
    assert default_folder() == Path("memory_store/default")
    for name in ("../ann", "", "a/b", ".hidden", "starter"):
        with pytest.raises(MemoryStoreError, match="cannot name a memory"):
            default_folder(name)


def test_the_command_starts_without_the_memorys_packages():
    code = "import sys, ttom_core.cli; print(*{'numpy', 'pydantic', 'torch', 'sqlite3'} & sys.modules.keys())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert not run.stdout.split()
