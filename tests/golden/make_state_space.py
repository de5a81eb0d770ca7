"""Tiny models whose mixers carry states, with random weights, and what transformers computes from them on the CPU: tests/golden/state_space.
Run with a Python that has torch, transformers and safetensors; the tests themselves need only what it wrote."""
import os
import sys

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from transformers.models.falcon_h1 import FalconH1Config
from transformers.models.falcon_mamba import FalconMambaConfig
from transformers.models.jamba import JambaConfig
from transformers.models.lfm2 import Lfm2Config
from transformers.models.mamba import MambaConfig
from transformers.models.mamba2 import Mamba2Config
from transformers.models.qwen3_5 import Qwen3_5TextConfig

attention = dict(num_attention_heads=2, num_key_value_heads=1, intermediate_size=24, max_position_embeddings=64, tie_word_embeddings=False)
qkvo, gated = ["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"]
common = dict(vocab_size=40, hidden_size=16, num_hidden_layers=2, pad_token_id=0, bos_token_id=1, eos_token_id=2)
models = {
    "mamba": (MambaConfig(state_size=4, time_step_rank=3, use_bias=True, **common), ["in_proj", "x_proj", "out_proj"]),
    "falcon_mamba": (FalconMambaConfig(state_size=5, tie_word_embeddings=False, **common), ["in_proj", "x_proj", "out_proj"]),
    "mamba2": (Mamba2Config(state_size=6, num_heads=4, head_dim=8, n_groups=2, chunk_size=8, time_step_limit=(0.0, 0.9),
                            **common), ["in_proj", "out_proj"]),
    "lfm2": (Lfm2Config(layer_types=["conv", "full_attention"], conv_bias=True, block_auto_adjust_ff_dim=False, **attention, **common),
             ["q_proj", "k_proj", "v_proj", "out_proj", "in_proj", "w1", "w2", "w3"]),
    "falcon_h1": (FalconH1Config(mamba_d_ssm=32, mamba_n_heads=4, mamba_n_groups=2, mamba_d_state=6, mamba_rms_norm=True, mamba_chunk_size=8,
                                 mlp_multipliers=[0.7, 1.3], key_multiplier=0.6, attention_out_multiplier=1.4, lm_head_multiplier=0.5,
                                 attention_in_multiplier=0.8, ssm_multipliers=[0.9, 1.1, 0.8, 1.2, 0.7], ssm_in_multiplier=1.3,
                                 ssm_out_multiplier=0.6, embedding_multiplier=2.0, **attention, **common),
                  ["in_proj", "out_proj"] + qkvo + gated),
    "jamba": (JambaConfig(attn_layer_period=2, attn_layer_offset=1, num_experts=1, num_experts_per_tok=1, mamba_d_state=5, mamba_dt_rank=3,
                          **attention, **common), ["in_proj", "x_proj", "out_proj"] + qkvo + gated),
    "qwen3_5_text": (Qwen3_5TextConfig(layer_types=["linear_attention", "full_attention"], head_dim=16, linear_num_key_heads=2,
                                       linear_num_value_heads=4, linear_key_head_dim=6, linear_value_head_dim=5, **attention, **common),
                     ["in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj"] + qkvo + gated),
}


def randomize(model):
    for name, p in model.named_parameters():
        if name.endswith("A_log"):
            p.data.uniform_(-1, 1.5)
        elif p.dim() == 1 and "norm" in name:
            p.data.uniform_(0.5, 1.5)
        elif p.dim() == 1:
            p.data.uniform_(-0.5, 0.5)
        elif "lm_head" in name or "embed" in name:
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
    for family in sys.argv[2:] or models:
        make(family, sys.argv[1])
