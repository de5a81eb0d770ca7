#!/usr/bin/env python3
"""Reference outputs of torchvision's image nets (and transformers' ResNet and ViTs), as tests/golden/images_spec.lua reads them.

    make_cnn_golden.py OUT [NET ...]        then: ONN_GOLDEN=OUT onn tests/run.lua tests/golden/images_spec.lua

A folder for each net: config.json, model.safetensors, golden.safetensors with x, labels, logits (eval), logits.train, gradients of the first
convolution, the first norm and the last layer, the first batch norm's running statistics after one training forward, and losses of three
SGD steps at 0.01. Nets are narrowed where their constructors allow it, which tests that sizes come from the tensors. The last column is how far
f32 is from f64 in the gradients: what hangs on rounding cannot be compared.
"""
import json
import sys
import zlib
from functools import partial
from pathlib import Path

import torch
import torchvision.models as tv
from safetensors.torch import save_file
from torch import nn
from torchvision.models import densenet, efficientnet, mobilenetv3, resnet

CLASSES = 10


def narrow_resnet(block, depths, width=8, **options):
    model = resnet.ResNet(block, depths, num_classes=CLASSES, **options)
    model.inplanes = width
    model.conv1, model.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
    for i, n in enumerate(depths):
        setattr(model, f"layer{i + 1}", model._make_layer(block, width << i, n, stride=1 if i == 0 else 2))
    model.fc = nn.Linear((width << 3) * block.expansion, CLASSES)
    return model


def narrow_vgg_bn(name="A"):
    from torchvision.models.vgg import VGG, cfgs, make_layers
    model = VGG(make_layers([c if c == "M" else max(c // 16, 4) for c in cfgs[name]], True), CLASSES, dropout=0.0)
    for at, m in ((0, nn.Linear(32 * 49, 48)), (3, nn.Linear(48, 48)), (6, nn.Linear(48, CLASSES))):
        model.classifier[at] = m
    return model


def transformers_resnet(layer_type, **options):
    from transformers import ResNetConfig, ResNetForImageClassification
    return ResNetForImageClassification(ResNetConfig(embedding_size=8, hidden_sizes=[16, 24, 32], depths=[1, 2, 1], layer_type=layer_type,
                                                     num_labels=CLASSES, **options))


def transformers_vit(kind, **options):
    import transformers
    config = getattr(transformers, f"{kind}Config")(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=64, patch_size=16,
                                                    num_labels=CLASSES, **options)
    return getattr(transformers, f"{kind}ForImageClassification")(config)


quiet = dict(num_classes=CLASSES, stochastic_depth_prob=0.0)
efficient = partial(dict, dropout=0.0, **quiet)
deep = [3, 4, 6, 3]
NETS = {
    "resnet34": lambda: narrow_resnet(resnet.BasicBlock, deep),
    "resnet50": lambda: narrow_resnet(resnet.Bottleneck, deep),
    "resnet101": lambda: narrow_resnet(resnet.Bottleneck, [3, 4, 23, 3]),
    "resnext50_32x4d": lambda: narrow_resnet(resnet.Bottleneck, deep, width=16, groups=32, width_per_group=4),
    "wide_resnet50_2": lambda: narrow_resnet(resnet.Bottleneck, deep, width_per_group=128),
    "vgg11_bn": lambda: narrow_vgg_bn("A"), "vgg16_bn": lambda: narrow_vgg_bn("D"), "vgg19_bn": lambda: narrow_vgg_bn("E"),
    "mobilenet_v3_small": lambda: tv.mobilenet_v3_small(num_classes=CLASSES, dropout=0.0, width_mult=0.25),
    "mobilenet_v3_large": lambda: tv.mobilenet_v3_large(num_classes=CLASSES, dropout=0.0, width_mult=0.25),
    "efficientnet_b0": lambda: tv.efficientnet_b0(**efficient()),
    "efficientnet_b5": lambda: tv.efficientnet_b5(**efficient()),
    "efficientnet_v2_s": lambda: tv.efficientnet_v2_s(**efficient()),
    "densenet121": lambda: densenet.DenseNet(8, (6, 12, 24, 16), 16, num_classes=CLASSES),
    "densenet161": lambda: densenet.DenseNet(8, (6, 12, 36, 24), 16, num_classes=CLASSES),
    "convnext_tiny": lambda: tv.convnext_tiny(**quiet),
    "vit_b_16": lambda: tv.VisionTransformer(64, 16, 12, 12, 48, 96, num_classes=CLASSES),
    "hf_vit": lambda: transformers_vit("ViT", intermediate_size=48),
    "hf_vit_state": lambda: transformers_vit("ViT", intermediate_size=48),
    "hf_dinov2_state": lambda: transformers_vit("Dinov2", mlp_ratio=2),
    "hf_vit_bare": lambda: transformers_vit("ViT", intermediate_size=48, qkv_bias=False, hidden_act="gelu_new"),
    "hf_deit": lambda: transformers_vit("DeiT", intermediate_size=48),
    "hf_dinov2": lambda: transformers_vit("Dinov2", mlp_ratio=2),
    "hf_resnet": lambda: transformers_resnet("bottleneck"),
    "hf_resnet_basic": lambda: transformers_resnet("basic", downsample_in_first_stage=True),
    "hf_resnet_down": lambda: transformers_resnet("bottleneck", downsample_in_bottleneck=True),
}


def logits_of(model, x):
    out = model(x)
    return out if torch.is_tensor(out) else out.logits


def reference(build, state, x, labels, dtype):
    model = build().to(dtype)
    model.load_state_dict(state)
    x, out = x.to(dtype), {}
    with torch.no_grad():
        out["logits"] = logits_of(model.eval(), x)
    model.train()
    out["logits.train"] = logits_of(model, x)
    nn.functional.cross_entropy(out["logits.train"], labels).backward()
    named = list(model.named_modules())
    first = [next(((n, m) for n, m in named if isinstance(m, kind)), None) for kind in (nn.Conv2d, nn.BatchNorm2d)]
    last = [(n, m) for n, m in named if isinstance(m, nn.Linear)][-1]
    for name, m in [f for f in first if f] + [last]:
        out.update({f"grad.{name}.{n}": p.grad.clone() for n, p in m.named_parameters()})
    if first[1]:
        name, m = first[1]
        out.update({f"after.{name}.running_mean": m.running_mean.clone(), f"after.{name}.running_var": m.running_var.clone()})
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.01), []
    for _ in range(3):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(logits_of(model, x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    out["train.losses"] = torch.stack(losses)
    return out


def make(name, out, draw=0):
    """Writes one folder. A draw whose gradients or losses hang on rounding is thrown away."""
    build = NETS[name]
    seed = zlib.crc32(f"{name}/{draw}".encode())
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = build()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        for n, p in model.named_parameters():
            if not p.any():
                p.copy_(0.1 * torch.randn(p.shape, generator=generator))
            if "layer_scale" in n:
                p.copy_(0.5 + 0.1 * torch.randn(p.shape, generator=generator))
        for m in norms:
            m.weight.copy_(0.7 + 0.1 * torch.randn(m.weight.shape, generator=generator))
            m.bias.copy_(0.5 + 0.1 * torch.randn(m.bias.shape, generator=generator))
            m.momentum = None
        model.train()(torch.randn(8, 3, 64, 64, generator=generator))        # running statistics that eval mode expects
    state = {k: v.clone().contiguous() for k, v in model.state_dict().items()}
    x, labels = torch.randn(4, 3, 64, 64, generator=generator), torch.tensor([3, 7, 0, 9])
    single, double = (reference(build, state, x, labels, d) for d in (torch.float32, torch.float64))
    top = max(double[k].abs().max().item() for k in double if k.startswith("grad"))
    off = {k: ((single[k].double() - double[k]).abs().max().item() / max(double[k].abs().max().item(), k.startswith("grad") * top / 1000))
           for k in single}
    worst = max(v for k, v in off.items() if k.startswith("grad"))
    if (worst > 1e-4 or off["train.losses"] > 1e-5) and draw < 20:
        return make(name, out, draw + 1)
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config.to_dict() if hasattr(model, "config") else {"architecture": name, "num_classes": CLASSES}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if hasattr(model, "config") and "state" not in name:                     # checkpoints have other names than modules
        model.load_state_dict(state)
        model.save_pretrained(folder)
    else:
        save_file(state, folder / "model.safetensors", {"format": "pt"})
    save_file({"x": x, "labels": labels, **{k: v.detach().contiguous().clone() for k, v in single.items()}}, folder / "golden.safetensors")
    print(f"{name:20s} logits {off['logits']:.1e}  train {off['logits.train']:.1e}  gradients {worst:.1e}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.backends.mkldnn.enabled = False
    for net in sys.argv[2:] or NETS:
        make(net, Path(sys.argv[1]))
