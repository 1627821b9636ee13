"""Groundings: exact on rendered scenes; the detector's whole path with toy models of the real classes."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ttom_core.errors import TTOMError
from ttom_core.evaluation.blobs import BACKGROUNDS, PALETTE
from ttom_core.evaluation.detectors import GroundingDino, Sam2
from ttom_core.evaluation.grounding import BlobGrounding, DetectorGrounding, grounding_of


def canvas(frames: int = 2) -> np.ndarray:
    return np.full((frames, 64, 64, 3), BACKGROUNDS["dark"], np.uint8)


def test_every_pixel_of_the_named_object_and_no_other() -> None:
    frames = canvas(3)
    frames[:2, 10:26, 30:46] = PALETTE["red"]  # a square, gone in the last frame
    frames[:, 40:56, 4:20] = PALETTE["blue"]
    masks = BlobGrounding().locate(frames, ["red square", "blue squares", "red circle"])
    np.testing.assert_array_equal(masks[0], (frames == PALETTE["red"]).all(-1))
    np.testing.assert_array_equal(masks[1], (frames == PALETTE["blue"]).all(-1))
    assert not masks[2].any()
    alone = BlobGrounding().locate(frames, ["red circle", "blue square"])
    np.testing.assert_array_equal(alone, masks[:2], "misdrawn, and still the only red thing asked for")


@pytest.mark.parametrize("phrase", ["a dog", "red dog", "circle", "red blue circle", ""])
def test_what_is_no_coloured_shape_is_refused(phrase: str) -> None:
    with pytest.raises(TTOMError, match="no coloured shape"):
        BlobGrounding().locate(canvas(), [phrase])


def test_an_unknown_grounding_is_refused() -> None:
    with pytest.raises(TTOMError, match="'eyes'; choose one of blobs, detector"):
        grounding_of("eyes")


# ---- the detector --------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def dino(tmp_path_factory):
    """A GroundingDINO of toy size with random weights, as a folder."""
    from transformers import (
        BertConfig,
        BertTokenizerFast,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
        SwinConfig,
    )

    folder = tmp_path_factory.mktemp("dino")
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] . red circle blue square".split()
    (folder / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    text = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    vision = SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1] * 4,
        num_heads=[1] * 4,
        window_size=2,
        out_features=["stage2", "stage3", "stage4"],
    )
    config = GroundingDinoConfig(
        backbone_config=vision,
        text_config=text,
        d_model=32,
        num_queries=5,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        disable_custom_kernels=True,
        max_text_len=16,
    )
    pictures = GroundingDinoImageProcessor(size={"shortest_edge": 128, "longest_edge": 128})
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    GroundingDinoProcessor(pictures, tokenizer).save_pretrained(folder)
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def sam(tmp_path_factory):
    """A SAM 2 of toy size with random weights, as a folder."""
    pytest.importorskip("torchvision", reason="SAM 2's image processor needs torchvision")
    from transformers import (
        Sam2Config,
        Sam2HieraDetConfig,
        Sam2ImageProcessor,
        Sam2MaskDecoderConfig,
        Sam2Model,
        Sam2Processor,
        Sam2PromptEncoderConfig,
        Sam2VisionConfig,
    )

    folder = tmp_path_factory.mktemp("sam")
    torch.manual_seed(0)
    hiera = Sam2HieraDetConfig(
        hidden_size=8,
        image_size=[64, 64],
        blocks_per_stage=[1] * 4,
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1] * 4,
        window_size_per_stage=[2] * 4,
        global_attention_blocks=[],
        window_positional_embedding_background_size=[2, 2],
    )
    vision = Sam2VisionConfig(
        backbone_config=hiera,
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=16,
    )
    prompts = Sam2PromptEncoderConfig(hidden_size=16, image_size=64, mask_input_channels=4)
    decoder = Sam2MaskDecoderConfig(
        hidden_size=16, mlp_dim=16, num_hidden_layers=1, num_attention_heads=2, iou_head_hidden_dim=16
    )
    config = Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    sizes = {"size": {"height": 64, "width": 64}, "mask_size": {"height": 16, "width": 16}}
    Sam2Processor(Sam2ImageProcessor(**sizes), target_size=64).save_pretrained(folder)
    Sam2Model(config).save_pretrained(folder)
    return str(folder)


PHRASES = ("Red circle", "blue square.")


def clip() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (2, 48, 64, 3), np.uint8)


def test_detected_and_segmented(dino, sam) -> None:
    """Random weights find random things, but at no threshold everything, and at a high one nothing."""
    for threshold, found in ((0.0, True), (0.9999999, False)):
        grounding = DetectorGrounding(dino, sam, "cpu", box_threshold=threshold)
        masks = grounding.locate(clip(), PHRASES)
        assert masks.shape == (2, 2, 48, 64) and masks.dtype == bool
        assert masks.any() == found
    np.testing.assert_array_equal(masks, grounding.locate(clip(), PHRASES))


def test_segments_go_with_their_phrase(dino, monkeypatch) -> None:
    """The detector is real; the segmenter, which needs torchvision, is replaced by filled boxes."""

    def filled(self, frame, boxes):
        height, width = frame.shape[:2]
        masks = np.zeros((len(boxes), height, width), bool)
        for mask, (x, y, w, h) in zip(masks, boxes, strict=True):
            mask[int(y * height) : int((y + h) * height) + 1, int(x * width) : int((x + w) * width) + 1] = 1
        return masks

    monkeypatch.setattr(Sam2, "__call__", filled)
    grounding = DetectorGrounding(dino, "any", "cpu", box_threshold=0.0)
    both = grounding.locate(clip(), PHRASES)
    assert both.shape == (2, 2, 48, 64) and both.any((2, 3)).all()
    np.testing.assert_array_equal(both[1:], grounding.locate(clip(), PHRASES[1:]))
    assert grounding.locate(clip()[:0], PHRASES).shape == (2, 0, 48, 64)


def test_what_is_missing_is_told_before_any_clip_is_made(dino, tmp_path, monkeypatch) -> None:
    nowhere = str(tmp_path / "nowhere")
    for detector in (nowhere, dino):
        with pytest.raises(TTOMError, match=r"nowhere could not be loaded"):
            grounding_of("detector", detector, nowhere)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(TTOMError, match=r"pip install ttom\[detect\]"):
        grounding_of("detector")


def test_weights_in_a_pickle_are_never_opened(dino, tmp_path) -> None:
    folder = Path(shutil.copytree(dino, tmp_path / "pickled"))
    (folder / "model.safetensors").unlink()
    torch.save({"weight": torch.zeros(1)}, folder / "pytorch_model.bin")
    with pytest.raises(TTOMError, match="as safetensors"):
        GroundingDino(str(folder), "cpu")(clip()[0], "red circle")
