"""Train small, ship at the sizes ComfyUI's stock loader assumes, and lose nothing.

The loader takes heads of 128 and a text width of 4096. A model of 64×64 clips learns faster with two
heads of 64 and sixty words say no more at 4096 than at 128, so the narrow twin is trained: two to
three times faster on a CPU. `widen` then gives the wide model that computes the same (function-preserving
widening, Chen et al. 2016): hidden units are there twice and read at half weight, a head of 64 lies
within one of 128 on the rotary frequencies that the narrow twin was given, and the text is padded.
"""

from __future__ import annotations

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor
from transformers import UMT5EncoderModel


def rotary_columns(wide: WanTransformer3DModel, narrow: WanTransformer3DModel) -> Tensor:
    """Which columns of a wide head a narrow one stands for [narrow head size]: pairs, spread evenly."""
    columns, start = [], 0
    for axis in ("t_dim", "h_dim", "w_dim"):
        size, few = getattr(wide.rope, axis), getattr(narrow.rope, axis)
        pairs = torch.linspace(0, size // 2 - 1, few // 2).round().long()
        columns.append(start + torch.stack([2 * pairs, 2 * pairs + 1], 1).flatten())
        start += size
    return torch.cat(columns)


def match_rotary(narrow: WanTransformer3DModel, wide: WanTransformer3DModel) -> None:
    """Give the narrow twin the wide one's rotary frequencies at `rotary_columns`."""
    columns = rotary_columns(wide, narrow)
    narrow.rope.freqs_cos = wide.rope.freqs_cos[:, columns].clone()
    narrow.rope.freqs_sin = wide.rope.freqs_sin[:, columns].clone()


@torch.no_grad()
def head_start(transformer: WanTransformer3DModel, strength: float = 5.0) -> None:
    """Initial weights from which a few heads learn twice as fast as from the library's.

    - The first head of the first four blocks looks at its token's neighbour to the left, above, to the
      right, below (a constant query and key on the fastest rotary frequencies, the key turned by the
      offset).
    - Blocks start as the identity, gates open (adaLN-Zero, Peebles & Xie 2023).
    """
    rope = transformer.rope
    speed = torch.atan2(rope.freqs_sin[1], rope.freqs_cos[1]).float()
    for index, block in enumerate(transformer.blocks):
        row, column = ((0, -1), (-1, 0), (0, 1), (1, 0))[index % 4]
        rows, columns = rope.t_dim, rope.t_dim + rope.h_dim
        axes = ((0, 0, 3), (rows, row, 2), (columns, column, 2))
        for start, offset, pairs in axes if index < 4 else ():
            place = slice(start, start + 2 * pairs)
            angle = offset * speed[place][::2]
            block.attn1.to_q.bias[place] = strength * torch.tensor([1.0, 0.0]).repeat(pairs)
            block.attn1.to_k.bias[place] = strength * torch.stack([angle.cos(), -angle.sin()], 1).flatten()
        for last in (block.attn1.to_out[0], block.attn2.to_out[0], block.ffn.net[2]):
            last.weight.zero_()
            last.bias.zero_()
        block.scale_shift_table.zero_()[:, [2, 5]] = 1.0
    for module in (transformer.condition_embedder.time_proj, transformer.proj_out):
        module.weight.zero_()
        module.bias.zero_()


def _within(tensor: Tensor, axis: int, places: Tensor, size: int, fill: float = 0.0) -> Tensor:
    """The tensor's rows (columns) at these places of a larger axis."""
    shape = [*tensor.shape]
    shape[axis] = size
    return torch.full(shape, fill, dtype=tensor.dtype).index_copy(axis, places, tensor)


@torch.no_grad()
def widen_transformer(narrow: WanTransformer3DModel, wide: WanTransformer3DModel) -> None:
    """Write the narrow twin's function into the wide transformer: twice its width, as many heads."""
    columns, config = rotary_columns(wide, narrow), wide.config
    heads = torch.arange(config.num_attention_heads)[:, None] * config.attention_head_dim
    places, width = (heads + columns).flatten(), config.num_attention_heads * config.attention_head_dim
    state = {}
    for name, tensor in narrow.state_dict().items():
        if name.endswith("scale_shift_table"):
            state[name] = torch.cat([tensor, tensor], -1)
            continue
        # What it writes to: heads, six modulations, the hidden units, or an output of fixed size.
        if ".to_q." in name or ".to_k." in name or ".to_v." in name:
            tensor = _within(tensor, 0, places, width)
        elif ".norm_q." in name or ".norm_k." in name:
            # Half of a head is empty: its mean square halves, and logits are over √128 instead of √64.
            tensor = _within(tensor, 0, places, width, fill=1.0) * (0.5**0.5 if "norm_k" in name else 1.0)
        elif "time_proj" in name:
            parts = tensor.unflatten(0, (6, -1))
            tensor = torch.cat([parts, parts], 1).flatten(0, 1)
        elif "ffn.net.0" not in name and "proj_out" not in name:
            tensor = torch.cat([tensor, tensor], 0)
        # What it reads.
        if name.endswith("text_embedder.linear_1.weight"):
            tensor = torch.nn.functional.pad(tensor, (0, config.text_dim - tensor.shape[1]))
        elif "to_out" in name and tensor.ndim == 2:
            tensor = _within(tensor, 1, places, width)
        elif tensor.ndim == 2 and "ffn.net.2" not in name and "time_embedder.linear_1" not in name:
            tensor = torch.cat([tensor, tensor], 1) / 2
        state[name] = tensor
    wide.load_state_dict(state)


@torch.no_grad()
def widen_text(narrow: UMT5EncoderModel, wide: UMT5EncoderModel) -> None:
    """Write the narrow encoder's function into the first dimensions of the wide one."""
    source = narrow.state_dict()
    for name, tensor in wide.state_dict().items():
        tensor.zero_()[tuple(slice(size) for size in source[name].shape)] = source[name]
        if "norm" in name:  # a root mean square over more numbers
            tensor *= (source[name].numel() / tensor.numel()) ** 0.5
