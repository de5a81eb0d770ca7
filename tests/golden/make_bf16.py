"""How far the reference implementation's bf16 lies from its f32 on the golden checkpoints: writes bf16.json.

    python3 tests/golden/make_bf16.py GOLDEN_FOLDER        needs torch, transformers, safetensors

Each number is the largest difference of logits, relative to the largest logit. Our own bf16 may lie no farther.
"""
import json
import pathlib
import sys

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

FAMILIES = ["llama", "llama_tied_bias", "llama3_rope", "mistral", "qwen2", "qwen3", "phi3", "phi", "gemma2", "gpt2", "gpt_neox", "opt", "bloom", "mixtral"]


def distance(folder):
    golden = load_file(folder / "golden.safetensors")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        logits = model.to(torch.bfloat16)(golden["input_ids"]).logits.float()
    want = golden["logits"]
    return ((logits - want).abs().max() / want.abs().max()).item()


golden = pathlib.Path(sys.argv[1])
out = pathlib.Path(__file__).with_name("bf16.json")
out.write_text(json.dumps({name: round(distance(golden / name), 6) for name in FAMILIES}, indent=2) + "\n")
print(out.read_text())
