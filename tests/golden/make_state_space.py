"""Tiny state-space models with random weights, and what transformers computes from them on the CPU: tests/golden/state_space.
Run with a Python that has torch, transformers and safetensors; the tests themselves need only what it wrote."""
import os
import sys

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from transformers.models.falcon_mamba import FalconMambaConfig
from transformers.models.mamba import MambaConfig
from transformers.models.mamba2 import Mamba2Config

common = dict(vocab_size=40, hidden_size=16, num_hidden_layers=2, pad_token_id=0, bos_token_id=1, eos_token_id=2)
models = {
    "mamba": (MambaConfig(state_size=4, time_step_rank=3, use_bias=True, **common), ["in_proj", "x_proj", "out_proj"]),
    "falcon_mamba": (FalconMambaConfig(state_size=5, tie_word_embeddings=False, **common), ["in_proj", "x_proj", "out_proj"]),
    "mamba2": (Mamba2Config(state_size=6, num_heads=4, head_dim=8, n_groups=2, chunk_size=8, time_step_limit=(0.0, 0.9),
                            **common), ["in_proj", "out_proj"]),
}


def randomize(model):
    for name, p in model.named_parameters():
        if name.endswith("A_log"):
            p.data.uniform_(-1, 1.5)
        elif p.dim() == 1 and "norm" in name:
            p.data.uniform_(0.5, 1.5)
        elif p.dim() == 1:
            p.data.uniform_(-0.5, 0.5)
        elif "lm_head" in name or "embeddings" in name:
            p.data.normal_(0, 1)
        else:
            p.data.normal_(0, p[0].numel() ** -0.5)


class Lora(torch.nn.Module):
    """A linear layer with an adapter. PEFT refuses out_proj here, because fused kernels would pass it by; this path has none."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.A = torch.nn.Parameter(torch.randn(4, base.in_features) * 0.2)
        self.B = torch.nn.Parameter(torch.randn(base.out_features, 4) * 0.2)

    def forward(self, x):
        return self.base(x) + 2 * (x @ self.A.T @ self.B.T)


def make(name, out):
    torch.manual_seed(len(name))
    config, targets = models[name]
    model = AutoModelForCausalLM.from_config(config).float().eval()
    randomize(model)
    folder = os.path.join(out, name)
    model.save_pretrained(folder)
    for extra in ("generation_config.json",):
        if os.path.exists(os.path.join(folder, extra)):
            os.remove(os.path.join(folder, extra))
    ids = torch.randint(4, 40, (2, 17))
    golden = {"input_ids": ids, "logits": model(ids, use_cache=False).logits.detach()}
    row = ids[:1, :5]
    for _ in range(12):
        row = torch.cat([row, model(row, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    golden["greedy"] = row[:, 5:]
    for p in model.parameters():
        p.requires_grad_(False)
    adapters = {}
    for module, layer in list(model.named_modules()):
        if module.split(".")[-1] in targets:
            parent, child = module.rsplit(".", 1)
            adapters[module] = Lora(layer)
            setattr(model.get_submodule(parent), child, adapters[module])
    loss = model(ids, labels=ids, use_cache=False).loss
    loss.backward()
    golden["loss"] = loss.detach()
    for module, adapter in adapters.items():
        for part in ("A", "B"):
            p = getattr(adapter, part)
            golden[f"lora.{module}.{part}"] = p.detach().clone()
            golden[f"grad.{module}.{part}"] = p.grad.clone()
    save_file({k: v.contiguous() for k, v in golden.items()}, os.path.join(folder, "golden.safetensors"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for family in models:
        make(family, sys.argv[1])
