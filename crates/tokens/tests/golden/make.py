"""Writes the golden table: prompts and tokens of requests.json by another implementation than the one under test.

`python make.py MODEL.gguf > prompts.json` with `pip install gguf jinja2 tokenizers`. What is reproduced here by hand
is the contract of the `transformers` library: Jinja with trimmed blocks, `tojson` like `json.dumps`, control tokens
read as such, contents as one text and call arguments as objects.
"""

import hashlib
import json
import pathlib
import sys

import gguf
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers


def spoken(message):
    message = {key: value for key, value in message.items() if value is not None or key == "content"}
    message["role"] = {"developer": "system", "function": "tool"}.get(message["role"], message["role"])
    if isinstance(message["content"], list):
        message["content"] = "\n".join(part["text"] for part in message["content"] if part["type"] == "text")
    for call in message.get("tool_calls", []):
        try:
            arguments = json.loads(call["function"]["arguments"])
        except ValueError:
            continue
        if isinstance(arguments, dict):
            call["function"]["arguments"] = arguments
    return message


def main():
    path = pathlib.Path(sys.argv[1])
    reader = gguf.GGUFReader(path)
    field = lambda name: reader.get_field(name).contents()  # noqa: E731
    tokens, types, merges = (field(f"tokenizer.ggml.{name}") for name in ("tokens", "token_type", "merges"))
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, [tuple(merge.split(" ")) for merge in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, types) if kind == gguf.TokenType.CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    template = environment.from_string(field("tokenizer.chat_template"))
    bos = tokens[field("tokenizer.ggml.bos_token_id")]

    cases = []
    for case in json.loads(pathlib.Path(__file__).with_name("requests.json").read_text()):
        request = case["request"]
        tools = request.get("tools") if request.get("tool_choice") != "none" else None
        messages = [spoken(message) for message in request["messages"]]
        prompt = template.render(messages=messages, tools=tools, bos_token=bos, eos_token="", add_generation_prompt=True)
        cases.append({"name": case["name"], "prompt": prompt, "tokens": tokenizer.encode(prompt, add_special_tokens=False).ids})
    table = {"model": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "cases": cases}
    lines = ",\n".join("  " + json.dumps(case, ensure_ascii=False) for case in table.pop("cases"))
    print(json.dumps(table)[:-1] + ', "cases": [\n' + lines + "\n]}")


if __name__ == "__main__":
    main()
