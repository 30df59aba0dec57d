"""Writes BUILD/weights.npz and BUILD/tokenizer.json as one GGUF file: matrices Q8_0, norms F32.

`python export.py --build BUILD --out cxm-tiny-q8.gguf`; the file appears whole or not at all.
"""

import argparse
import json
import os
from pathlib import Path

import gguf
import numpy as np

import corpus
import model
from train import SPECIAL

# `tools` becomes a system turn of its own; an assistant's calls are text; a tool's answer has its own role.
# Arguments come as a JSON string (OpenAI) or as an object (most templates): both are accepted.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% if tools %}<|system|>" + corpus.TOOLS_INTRODUCTION + "{{ tools | tojson }}<|end|>{% endif %}"
    "{% for message in messages %}"
    "{% if message.role == 'system' or message.role == 'developer' %}<|system|>"
    "{% elif message.role == 'assistant' %}<|assistant|>"
    "{% elif message.role == 'tool' or message.role == 'function' %}<|tool|>"
    "{% else %}<|user|>{% endif %}"
    "{% if message.content is string %}{{ message.content }}"
    "{% elif message.content %}{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}"
    "{% if message.tool_calls %}{% for call in message.tool_calls %}"
    "<tool_call>{\"name\":{{ call.function.name | tojson }},\"arguments\":"
    "{% if call.function.arguments is string %}{{ call.function.arguments }}{% else %}{{ call.function.arguments | tojson }}{% endif %}"
    "}</tool_call>{% endfor %}{% endif %}"
    "<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def add_header(writer, tokenizer):
    writer.add_name("cxm-tiny")
    writer.add_description("Tiny test model of Cxmpute; made by tools/tiny-model")
    writer.add_license("Apache-2.0")
    writer.add_block_count(model.LAYERS)
    writer.add_context_length(model.CONTEXT)
    writer.add_embedding_length(model.WIDTH)
    writer.add_feed_forward_length(model.FEED_FORWARD)
    writer.add_head_count(model.HEADS)
    writer.add_head_count_kv(model.KV_HEADS)
    writer.add_layer_norm_rms_eps(model.NORM_EPSILON)
    writer.add_rope_dimension_count(model.HEAD)
    writer.add_rope_freq_base(model.ROPE_BASE)
    writer.add_vocab_size(model.VOCABULARY)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)

    ids = tokenizer["model"]["vocab"]
    tokens = sorted(ids, key=ids.get)
    end = ids["<|end|>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token in SPECIAL else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(ids["<s>"])
    writer.add_eos_token_id(end)
    writer.add_eot_token_id(end)
    writer.add_unk_token_id(ids["<s>"])
    writer.add_pad_token_id(ids["<s>"])
    writer.add_add_bos_token(True)
    writer.add_chat_template(CHAT_TEMPLATE)


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--build", type=Path, required=True)
    arguments.add_argument("--out", type=Path, required=True)
    arguments = arguments.parse_args()
    weights = np.load(arguments.build / "weights.npz")
    tokenizer = json.loads((arguments.build / "tokenizer.json").read_text())

    unfinished = arguments.out.with_name(f"{arguments.out.name}.{os.getpid()}.part")
    writer = gguf.GGUFWriter(unfinished, "llama")
    add_header(writer, tokenizer)
    for name in weights.files:
        values = np.asarray(weights[name], np.float32)
        if values.ndim == 1:
            writer.add_tensor(f"{name}.weight", values)
            continue
        rows = np.ascontiguousarray(values if name == "token_embd" else values.T)  # GGUF stores output-first
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(rows, gguf.GGMLQuantizationType.Q8_0), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(unfinished, arguments.out)
    print(arguments.out, arguments.out.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
