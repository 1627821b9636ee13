"""The two sets of names of one transformer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ttom_core.backbones.fingerprint import fingerprint
from ttom_core.backbones.names import COGVIDEOX, WAN, adapted, convert, diffusers_name, names_of, native_name
from ttom_core.backbones.native import native_fingerprint
from ttom_core.cli import main
from ttom_core.errors import TTOMError


@pytest.fixture(scope="module")
def names() -> list[str]:
    """Of the real class, for text and for images."""
    from diffusers import WanTransformer3DModel

    sizes = {"num_attention_heads": 1, "attention_head_dim": 24, "ffn_dim": 8, "num_layers": 12}
    with torch.device("meta"):
        plain = WanTransformer3DModel(**sizes)
        image = WanTransformer3DModel(**sizes, image_dim=8, added_kv_proj_dim=24, pos_embed_seq_len=4)
    return sorted({*plain.state_dict(), *image.state_dict()})


def test_the_names_are_one_to_one(names: list[str]) -> None:
    native = [native_name(name) for name in names]
    assert len(set(native)) == len(names)
    assert [diffusers_name(name) for name in native] == names


def test_what_a_family_adapts_before_a_map() -> None:
    features = [f"blocks.0.attn1.{part}" for part in ("to_q", "to_k", "to_v", "to_out.0")]
    assert adapted(WAN, (0,), "features") == features
    assert adapted(WAN, (1,), "features")[4:6] == ["blocks.0.ffn.net.0.proj", "blocks.0.ffn.net.2"]
    joint = [f"transformer_blocks.{i}.ff.net.{part}" for i in (0, 1) for part in ("0.proj", "2")]
    assert adapted(COGVIDEOX, (2,), "features") == joint
    with pytest.raises(TTOMError, match="choose a deeper loss layer"):
        adapted(COGVIDEOX, (0,), "features")


def test_they_are_the_names_that_diffusers_itself_reads(names: list[str]) -> None:
    """Its own converter of the makers' files agrees, name by name."""
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    theirs = [name for name in names if "pos_embed" not in name]  # which it does not know
    for name in theirs:
        (read,) = convert_wan_transformer_to_diffusers({native_name(name): torch.zeros(1)})
        assert read == name


@pytest.fixture(scope="module")
def cogvideox() -> dict[str, torch.Tensor]:
    """The weights of the real class, with all the parts that it can have."""
    from diffusers import CogVideoXTransformer3DModel

    torch.manual_seed(0)
    model = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        num_layers=11,
        time_embed_dim=8,
        ofs_embed_dim=8,
        text_embed_dim=8,
        sample_width=4,
        sample_height=4,
        max_text_seq_length=8,
        use_learned_positional_embeddings=True,
        use_rotary_positional_embeddings=True,
    )
    return model.state_dict()


def test_cogvideox_goes_there_and_back(cogvideox: dict[str, torch.Tensor], tmp_path: Path) -> None:
    native = {name: native_name(name, COGVIDEOX) for name in cogvideox}
    assert len(set(native.values())) == len(native)
    assert {diffusers_name(name, COGVIDEOX) for name in native.values()} == cogvideox.keys()
    assert names_of(native.values()) is names_of(native) is COGVIDEOX

    (tmp_path / "transformer").mkdir()
    save_file(cogvideox, tmp_path / "transformer" / "model.safetensors")
    convert(tmp_path, tmp_path / "native.safetensors")
    assert load_file(tmp_path / "native.safetensors").keys() == set(native.values())
    convert(tmp_path / "native.safetensors", tmp_path / "back.safetensors")
    restored = load_file(tmp_path / "back.safetensors")
    assert restored.keys() == cogvideox.keys()
    assert all(torch.equal(restored[name], cogvideox[name]) for name in cogvideox)


def test_a_cogvideox_has_one_fingerprint_under_both_names(cogvideox: dict[str, torch.Tensor]) -> None:
    weights = {
        native_name(name, COGVIDEOX): x for name, x in cogvideox.items() if "pos_embedding" not in name
    }
    parameters = [(name, x) for name, x in cogvideox.items() if "pos_embedding" not in name]
    assert native_fingerprint(weights) == fingerprint("cogvideox", 11, 32, parameters)
    for lost in ("norm_final.weight", "blocks.10.attn_out.bias"):
        with pytest.raises(TTOMError, match=rf"^The MODEL lacks {lost}, so it is no whole CogVideoX"):
            native_fingerprint({name: x for name, x in weights.items() if name != lost})


@pytest.mark.parametrize(
    "name", ["", "blocks.0.", "blocks.0.attn3.to_q", "attn2.to_q", "transformer_blocks.0.x"]
)
def test_what_wan_does_not_have_is_refused(name: str) -> None:
    for rename in (native_name, diffusers_name):
        with pytest.raises(TTOMError, match="no part of a Wan transformer"):
            rename(name)


def test_a_model_goes_there_and_back(backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backbone.transformer.save_pretrained(tmp_path / "pipeline" / "transformer", max_shard_size="40KB")
    native, back = tmp_path / "models" / "native.safetensors", tmp_path / "back.safetensors"
    assert main(["convert", str(tmp_path / "pipeline"), str(native)]) == 0
    assert convert(native, back) == len(load_file(back))
    assert "head.modulation" in load_file(native)
    ours = backbone.transformer.state_dict()
    restored = load_file(back)
    assert restored.keys() == ours.keys()
    assert all(torch.equal(restored[name], ours[name]) for name in ours)


def test_mistakes_are_told_and_leave_no_file(tmp_path: Path) -> None:
    save_file({"conv.weight": torch.zeros(1)}, tmp_path / "image.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    for source, target, words in [
        ("image.safetensors", "new.safetensors", "no part of a Wan"),
        ("cut.safetensors", "new.safetensors", "damaged"),
        ("nowhere", "new.safetensors", "holds no transformer"),
        ("image.safetensors", "cut.safetensors", "exists already"),
        ("image.safetensors", "new.bin", "does not end in"),
    ]:
        with pytest.raises(TTOMError, match=words):
            convert(tmp_path / source, tmp_path / target)
    assert {path.name for path in tmp_path.iterdir()} == {"image.safetensors", "cut.safetensors"}


@pytest.mark.parametrize("number", [0, 1, 7, 10**12])
def test_a_model_with_less_than_a_wans_tensors_has_no_fingerprint(number: int) -> None:
    """However its blocks are numbered."""
    tail = {"head.modulation": torch.zeros(1, 2, 24)}
    for weights in ({}, tail, tail | {f"blocks.{number}.modulation": torch.zeros(1, 6, 24)}):
        with pytest.raises(TTOMError, match=r"^The MODEL lacks .*, so it is no whole Wan; load another file"):
            native_fingerprint(weights)
