"""Writes a checkpoint as GGUF: matrices in q8_0, norms in float32, the vocabulary and the chat template.

llama.cpp turns neighbouring numbers of a head together (2i, 2i + 1); the network turned the two halves
(i, i + half). The rows of the query and key matrices are reordered accordingly. The output matrix is not
written: llama.cpp then uses the embedding, as the network does.

    python tools/tinydoc/export.py tinydoc.pt src/ollama_adapter/embedded/tinydoc/tinydoc.gguf
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from corpus import BOS, END, SPECIAL_TOKENS
from model import Shape, TinyDoc

DESCRIPTION = (
    "A demonstration model that knows nothing: one million parameters that imitate the sound of Python's "
    "documentation. For trying out software, never for answers."
)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
NAMES = {
    "attention_norm": "attn_norm",
    "attention.q": "attn_q",
    "attention.k": "attn_k",
    "attention.v": "attn_v",
    "attention.o": "attn_output",
    "feed_forward_norm": "ffn_norm",
    "feed_forward.gate": "ffn_gate",
    "feed_forward.up": "ffn_up",
    "feed_forward.down": "ffn_down",
}
QUANT = gguf.GGMLQuantizationType.Q8_0


def export(checkpoint: dict[str, Any], path: Path) -> None:
    """Write the whole file."""
    shape = Shape(**checkpoint["shape"])
    writer = gguf.GGUFWriter(path, "llama")
    add_general(writer)
    add_sizes(writer, shape)
    add_vocabulary(writer, json.loads(checkpoint["tokenizer"]))
    for name, weight in checkpoint["weights"].items():
        add_weight(writer, name, weight.float().numpy(), shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_general(writer: gguf.GGUFWriter) -> None:
    """What it is, and under whose terms."""
    writer.add_type("model")
    writer.add_name("tinydoc")
    writer.add_description(DESCRIPTION)
    writer.add_size_label("1M")
    writer.add_license("PSF-2.0")
    writer.add_license_name("Python Software Foundation License Version 2 (training text)")
    writer.add_tags(["text-generation", "demonstration"])
    writer.add_languages(["en"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def add_sizes(writer: gguf.GGUFWriter, shape: Shape) -> None:
    """The sizes under the names llama.cpp reads."""
    writer.add_vocab_size(shape.vocab)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.norm_eps)


def add_vocabulary(writer: gguf.GGUFWriter, tokenizer: dict[str, Any]) -> None:
    """Tokens, merges, and which tokens begin and end things."""
    ids: dict[str, int] = tokenizer["model"]["vocab"]
    tokens = sorted(ids, key=ids.__getitem__)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([control if token in SPECIAL_TOKENS else normal for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(ids[BOS])
    writer.add_eos_token_id(ids[END])
    writer.add_eot_token_id(ids[END])
    writer.add_pad_token_id(ids[BOS])
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def add_weight(writer: gguf.GGUFWriter, name: str, weight: np.ndarray, shape: Shape) -> None:
    """One tensor under llama.cpp's name, quantised if it is a matrix."""
    if name.endswith("attention.q.weight"):
        weight = pair_rows(weight, shape.heads)
    elif name.endswith("attention.k.weight"):
        weight = pair_rows(weight, shape.kv_heads)
    if weight.ndim == 1:
        writer.add_tensor(tensor_name(name), weight)
    else:
        writer.add_tensor(tensor_name(name), gguf.quants.quantize(weight, QUANT), raw_dtype=QUANT)


def tensor_name(name: str) -> str:
    """`blocks.3.attention.q.weight` -> `blk.3.attn_q.weight`."""
    if not name.startswith("blocks."):
        return {"embedding.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}[name]
    _, block, rest = name.split(".", 2)
    return f"blk.{block}.{NAMES[rest.removesuffix('.weight')]}.weight"


def pair_rows(weight: np.ndarray, heads: int) -> np.ndarray:
    """Within each head, put row i + half behind row i."""
    halves = weight.reshape(heads, 2, -1, weight.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)


def quantised(model: TinyDoc) -> TinyDoc:
    """The same network after a round trip through q8_0: what llama.cpp computes with."""
    for weight in model.parameters():
        if weight.ndim == 2:
            packed = gguf.quants.quantize(weight.detach().numpy(), QUANT)
            weight.data = torch.from_numpy(gguf.quants.dequantize(packed, QUANT))
    return model


def main() -> None:
    """Write the file and its checksum next to it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("gguf", type=Path)
    options = parser.parse_args()
    checkpoint = torch.load(options.checkpoint, weights_only=True)
    partial = options.gguf.with_suffix(".part")
    export(checkpoint, partial)
    partial.replace(options.gguf)
    line = f"{hashlib.sha256(options.gguf.read_bytes()).hexdigest()}  {options.gguf.name}\n"
    options.gguf.with_name("SHA256SUMS").write_text(line)
    print(options.gguf.stat().st_size, line, checkpoint["facts"])


if __name__ == "__main__":
    main()
