"""Groundings: exact on rendered scenes; the detector's whole path with toy models of the real classes."""

from __future__ import annotations

import importlib.util
import json
import sys

import numpy as np
import pytest
import torch

from ttom_core.errors import TTOMError
from ttom_core.evaluation.blobs import BACKGROUNDS, PALETTE
from ttom_core.evaluation.grounding import BlobGrounding, DetectorGrounding, _loaded, grounding_of


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


def test_boxes_lie_in_the_frame_and_segments_with_their_phrase(dino, monkeypatch) -> None:
    """The detector is real; the segmenter, which needs torchvision, is replaced by filled boxes."""
    from ttom_core.evaluation import grounding as module

    real, asked = module._loaded, []

    def loaded(model, processor, name):
        asked.append(name)
        return (torch.nn.Identity(), None) if name == "sam" else real(model, processor, name)

    def filled(self, frame, boxes):
        masks = np.zeros((len(boxes), *frame.shape[:2]), bool)
        for mask, (left, top, right, bottom) in zip(masks, boxes.round().astype(int), strict=True):
            mask[top : bottom + 1, left : right + 1] = True
        return masks

    monkeypatch.setattr(module, "_loaded", loaded)
    monkeypatch.setattr(DetectorGrounding, "_segments", filled)
    grounding = DetectorGrounding(dino, "sam", "cpu", box_threshold=0.0)
    assert asked == [dino, "sam"]
    first, second = grounding.boxes(clip()[0], PHRASES)
    assert first.shape == second.shape == (5, 4)
    for boxes in (first, second):
        assert (boxes >= 0).all() and (boxes <= [64, 48, 64, 48]).all()
    both = grounding.locate(clip(), PHRASES)
    np.testing.assert_array_equal(both[1:], grounding.locate(clip(), PHRASES[1:]))


def test_missing_weights_and_packages_are_one_sentence(dino, tmp_path, monkeypatch) -> None:
    nowhere = str(tmp_path / "nowhere")
    with pytest.raises(TTOMError, match=r"nowhere.*cannot be loaded"):
        grounding_of("detector", nowhere, nowhere)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(TTOMError, match="cannot be loaded"):
        grounding_of("detector", dino, str(tmp_path))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(TTOMError, match=r"transformers 4\.56"):
        grounding_of("detector")


@pytest.mark.parametrize("name", ["Sam2ImageProcessor", "Sam2ImageProcessorFast"])
def test_without_torchvision_it_is_asked_for(name: str, dino, tmp_path) -> None:
    if importlib.util.find_spec("torchvision"):
        pytest.skip("torchvision is installed")
    from transformers import AutoProcessor

    class Model:
        from_pretrained = staticmethod(lambda name: torch.nn.Identity())

    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": name}))
    (tmp_path / "processor_config.json").write_text('{"processor_class": "Sam2Processor"}')
    with pytest.raises(TTOMError, match="pip install torchvision"):
        _loaded(Model, AutoProcessor, str(tmp_path))
