"""Models from folders, the Hub's cache and single files; what is missing or cut short is said at once."""

import json
import shutil

import huggingface_hub.constants as hub
import pytest
import tiny_cogvideox
import torch
from conftest import PHRASES, PROMPT, build_tiny
from diffusers import CogVideoXPipeline, CogVideoXTransformer3DModel, WanPipeline
from safetensors.torch import load_file, save_file

from ttom_core.backbones import ModelError, load
from ttom_core.backbones.cogvideox import CogVideoXBackbone
from ttom_core.backbones.folder import model_files
from ttom_core.backbones.wan import WanBackbone
from ttom_core.errors import TTOMError

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """A toy CogVideoX as a diffusers folder, its transformer in shards."""
    path = tmp_path_factory.mktemp("published") / "cogvideox"
    pipeline = tiny_cogvideox.build("5b")
    pipeline.save_pretrained(path)
    (path / "transformer" / WEIGHTS).unlink()
    pipeline.transformer.save_pretrained(path / "transformer", max_shard_size="40KB")
    return path


@pytest.fixture(scope="session")
def published_wan(tmp_path_factory):
    path = tmp_path_factory.mktemp("published") / "wan"
    build_tiny().save_pretrained(path)
    return path


@pytest.fixture
def folder(published, tmp_path):
    """A copy to damage."""
    return shutil.copytree(published, tmp_path / "model")


def refused(words, *arguments, monkeypatch=None, error=ModelError, **options):
    """Refused in one sentence and, with `monkeypatch`, before any weights are read."""
    if monkeypatch is not None:
        for cls in (CogVideoXPipeline, WanPipeline):
            monkeypatch.setattr(cls, "from_pretrained", lambda *_, **__: pytest.fail("loading has begun"))
    with pytest.raises(error, match=words) as told:
        load(*arguments, **options)
    text = str(told.value)
    assert "\n" not in text and text.endswith(".")
    return text


# ---- folders -------------------------------------------------------------------------------------


def test_the_family_is_read_from_the_folder(published, published_wan):
    cogvideox, wan = load(published), load(published_wan)
    assert isinstance(cogvideox, CogVideoXBackbone) and isinstance(wan, WanBackbone)
    assert cogvideox.fingerprint == CogVideoXBackbone(tiny_cogvideox.build("5b")).fingerprint
    assert wan.fingerprint == WanBackbone(build_tiny()).fingerprint
    assert (cogvideox.fps, wan.fps) == (8, 16)
    for backbone in (cogvideox, wan):
        assert set(backbone.phrase_tokens(PROMPT, PHRASES)) == set(PHRASES)
    assert load(published, dtype=torch.bfloat16).transformer.dtype == torch.bfloat16


def test_a_folder_can_say_what_clips_it_was_trained_on(folder):
    assert load(folder).trained_clip.size == {"num_frames": 21, "height": 64, "width": 64}
    (folder / "clip.json").write_text('{"fps": 12, "num_frames": 9, "width": 80, "steps": 20}')
    backbone = load(folder)
    assert backbone.fps == 12
    assert backbone.trained_clip.size == {"num_frames": 9, "height": 64, "width": 80}


@pytest.mark.parametrize("name", ["fps", "num_frames", "height"])
@pytest.mark.parametrize("value", ["0", "-8", "7.5", '"12"', "true", "null", "1e9"])
def test_a_clip_that_cannot_be_is_refused(folder, monkeypatch, name, value):
    (folder / "clip.json").write_text(f'{{"{name}": {value}}}')
    words = rf"clip\.json gives .* as {name}; write the model's [a-z ]+, such as \d+\."
    refused(words, folder, monkeypatch=monkeypatch, error=TTOMError)


@pytest.mark.parametrize("text", ["{", "[]", "3"])
def test_a_clip_file_of_another_form_is_refused(folder, monkeypatch, text):
    (folder / "clip.json").write_text(text)
    refused(r"clip\.json is not a JSON object", folder, monkeypatch=monkeypatch, error=TTOMError)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory.\nTried"), MemoryError()])
def test_a_model_too_large_for_the_memory_is_not_called_damaged(folder, monkeypatch, error):
    def load_pipeline(*_, **__):
        raise error

    monkeypatch.setattr(CogVideoXPipeline, "from_pretrained", load_pipeline)
    text = refused("does not fit into the memory .*; load it with offloading or lighter weights", folder)
    assert "download" not in text


def sentencepiece_tokenizer(folder):
    """Put a real SentencePiece model in place of the tokenizer's, as the published CogVideoX has it."""
    spm = pytest.importorskip("sentencepiece")
    pytest.importorskip("google.protobuf")
    text = folder / "text.txt"
    text.write_text("\n".join([PROMPT, "two green triangles move up", "a yellow disc spins slowly"] * 50))
    prefix = folder / "tokenizer" / "spiece"
    spm.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(prefix), vocab_size=35, model_type="unigram",
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    for name in ("tokenizer.json", "spiece.vocab"):
        (folder / "tokenizer" / name).unlink()
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": 226}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(settings))
    index = json.loads((folder / "model_index.json").read_text())
    index["tokenizer"] = ["transformers", "T5Tokenizer"]
    (folder / "model_index.json").write_text(json.dumps(index))


def test_a_published_tokenizer_is_loaded_as_one_that_knows_its_places(folder):
    sentencepiece_tokenizer(folder)
    backbone = load(folder)
    tokenizer, prompt = backbone.pipeline.tokenizer, "  a red  disc, a red circle moves"
    places = backbone.phrase_tokens(prompt, ["red circle"])["red circle"]
    ids = tokenizer(prompt).input_ids
    pieces = tokenizer.convert_ids_to_tokens([ids[i] for i in places])
    assert "".join(pieces) == "▁red▁circle" and len(pieces) > 2


def test_a_tokenizer_that_needs_another_package_says_so(folder, monkeypatch):
    (folder / "tokenizer" / "tokenizer.json").rename(folder / "tokenizer" / "spiece.model")
    monkeypatch.setattr("ttom_core.backbones.cogvideox.is_sentencepiece_available", lambda: False)
    words = "packages sentencepiece and protobuf; install them"
    refused(words, folder, monkeypatch=monkeypatch, error=TTOMError)


def needed_of(folder):
    return list(model_files(folder, json.loads((folder / "model_index.json").read_text())))


def test_every_missing_file_is_named(folder, monkeypatch):
    needed = needed_of(folder)
    assert sum(path.suffix == ".safetensors" for path in needed) > 3  # several shards among them
    for path in needed:
        if path.name.endswith(".index.json"):
            continue  # without it, the shards are no shards
        content = path.read_bytes()
        path.unlink()
        name = path.relative_to(folder).as_posix()
        refused(f"lacks {name}; download the model again", folder, monkeypatch=monkeypatch)
        path.write_bytes(content)
    gone = [path for path in needed if path.suffix == ".safetensors"]
    for path in gone:
        path.unlink()
    text = refused("lacks .* and ", folder)
    assert all(path.relative_to(folder).as_posix() in text for path in gone)


def test_an_index_that_is_missing_leaves_no_weights(folder, monkeypatch):
    (folder / "transformer" / f"{WEIGHTS}.index.json").unlink()
    refused(f"lacks transformer/{WEIGHTS};", folder, monkeypatch=monkeypatch)


def test_a_part_that_is_missing_is_named_file_by_file(folder, monkeypatch):
    shutil.rmtree(folder / "vae")
    refused(f"lacks vae/config.json and vae/{WEIGHTS};", folder, monkeypatch=monkeypatch)


@pytest.mark.parametrize("kept", [0, 7, 100, 0.5, -1])
def test_weights_that_were_cut_short_are_named(folder, monkeypatch, kept):
    for path in (folder / "vae" / WEIGHTS, next((folder / "transformer").glob("*-00002-*.safetensors"))):
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * kept) if isinstance(kept, float) else kept])
        name = path.relative_to(folder).as_posix()
        refused(f"partly downloaded files, {name};", folder, monkeypatch=monkeypatch)
        path.write_bytes(content)


BAD = {
    "a pointer in place of the file": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    "a page in place of the file": b"<!DOCTYPE html><html>404</html>",
    "a header of a terabyte": (2**40).to_bytes(8, "little") + b"{}",
    "nested brackets": b"[" * 200_000,
    "a pickle": b"\x80\x04\x95",
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_files_that_are_something_else_are_named(folder, monkeypatch, content):
    names = [f"vae/{WEIGHTS}", "vae/config.json", f"transformer/{WEIGHTS}.index.json"]
    for name in names:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(content)
        refused(f"partly downloaded files, {name};", folder, monkeypatch=monkeypatch)
        (folder / name).write_bytes(whole)


@pytest.mark.parametrize(
    "content", ["[]", '{"weight_map": []}', '{"weight_map": {"a": "../../x.safetensors"}}']
)
def test_an_index_that_makes_no_sense_is_refused(folder, monkeypatch, content):
    (folder / "transformer" / f"{WEIGHTS}.index.json").write_text(content)
    refused(r"partly downloaded files|lacks transformer/\.\./\.\./x", folder, monkeypatch=monkeypatch)


def test_a_shard_of_another_download_is_refused(folder, monkeypatch):
    first, second, *_ = sorted((folder / "transformer").glob("*-of-*.safetensors"))
    shutil.copyfile(first, second)
    refused(f"partly downloaded files, transformer/{WEIGHTS}.index.json;", folder, monkeypatch=monkeypatch)


def test_pickled_weights_are_not_read(folder, monkeypatch):
    path = folder / "vae" / WEIGHTS
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()
    refused(f"lacks vae/{WEIGHTS}", folder, monkeypatch=monkeypatch)


@pytest.mark.parametrize(
    "index", ["", "[]", "{}", '{"_class_name": 3}', '{"_class_name": ["a", "B"]}', "[" * 200_000]
)
def test_a_listing_that_makes_no_sense_is_refused(folder, index):
    (folder / "model_index.json").write_text(index)
    refused("no readable model_index.json|which TTOM does not know", folder)


@pytest.mark.parametrize("entry", [[], ["diffusers"], ["diffusers", 3], ["a", "b", "c"], [[], {}], {}, 7])
def test_a_part_that_makes_no_sense_is_refused(folder, entry):
    listing = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(listing | {"vae": entry}))
    refused("could not be loaded", folder)


# ---- the Hub -------------------------------------------------------------------------------------


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """No network, and an empty cache of the Hub's own form."""
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cached(folder, cache):
    """The cache as a download of this folder leaves it."""
    repository = cache / "models--somebody--toy"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("c0ffee")
    return shutil.copytree(folder, repository / "snapshots" / "c0ffee")


def test_a_model_of_the_hub_is_found_again_without_a_network(published, offline):
    cached(published, offline)
    assert load("somebody/toy").fingerprint == load(published).fingerprint


def test_a_download_that_was_interrupted_is_said(published, offline, monkeypatch):
    snapshot = cached(published, offline)
    (snapshot / "vae" / WEIGHTS).unlink()
    refused(f"(lacks vae/{WEIGHTS};|could not be had from the Hub)", "somebody/toy", monkeypatch=monkeypatch)


def test_a_model_that_is_nowhere_is_said(offline, tmp_path):
    refused("somebody/else is no model folder here and could not be had from the Hub", "somebody/else")
    refused("no model folder at ", tmp_path / "nowhere")
    refused("no model folder at nowhere", "nowhere")


# ---- single files --------------------------------------------------------------------------------

ORIGINAL_NAMES = {
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "attn1": "self_attn",
    "attn2": "cross_attn",
    "to_out.0": "o",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "norm2": "norm3",
    "proj_out": "head.head",
}


def original_name(name):
    """The name that Wan's authors, and ComfyUI, have for a weight."""
    for ours, theirs in ORIGINAL_NAMES.items():
        name = name.replace(ours, theirs)
    if name == "scale_shift_table":
        return "head.modulation"
    return name.replace("scale_shift_table", "modulation")


@pytest.mark.parametrize("name", ["cogvideox.gguf", "cogvideox.safetensors"])
def test_cogvideox_takes_no_single_file(published, tmp_path, monkeypatch, name):
    """diffusers has no way to read one; that is said whatever the file is, and whether gguf is installed."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not hasattr(CogVideoXTransformer3DModel, "from_single_file")
    words = "diffusers reads no single-file transformer for a CogVideoXPipeline, .* give a folder with"
    refused(words, published, transformer=tmp_path / name, monkeypatch=monkeypatch)


@pytest.fixture
def single(published_wan, tmp_path):
    """The folder's transformer as one file of ComfyUI's models/diffusion_models."""
    weights = load_file(published_wan / "transformer" / WEIGHTS)
    path = tmp_path / "wan.safetensors"
    save_file({original_name(name): value for name, value in weights.items()}, path)
    return path


def test_a_single_file_takes_the_place_of_the_folders_transformer(published_wan, single, tmp_path):
    folder = shutil.copytree(published_wan, tmp_path / "wan")
    (folder / "transformer" / WEIGHTS).unlink()  # not needed then
    both = load(folder, transformer=single), load(published_wan)
    assert both[0].fingerprint == both[1].fingerprint
    ours, theirs = (backbone.transformer.state_dict() for backbone in both)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_single_files_that_do_not_fit(published_wan, published, single, tmp_path, monkeypatch):
    weights = load_file(single)
    for words, changed in {
        "scaled fp8": weights | {"blocks.0.cross_attn.q.scale_weight": torch.ones(1)},
        "lacks weights": {name: w for name, w in weights.items() if name != "blocks.1.cross_attn.q.weight"},
        "does not fit into": weights | {"patch_embedding.weight": torch.ones(48, 36, 1, 2, 2)},
    }.items():
        save_file(changed, tmp_path / "bad.safetensors")
        with pytest.raises(TTOMError, match=words):
            load(published_wan, transformer=tmp_path / "bad.safetensors")
    single.write_bytes(single.read_bytes()[:-1])
    refused("damaged or only partly downloaded", published_wan, transformer=single, monkeypatch=monkeypatch)
    refused("There is no transformer at", published_wan, transformer=tmp_path / "no.safetensors")
    refused("is no safetensors file", published_wan, transformer=tmp_path / "wan.ckpt")
