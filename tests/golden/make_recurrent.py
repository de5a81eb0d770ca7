#!/usr/bin/env python3
"""Write tests/golden/recurrent/NAME: tiny random recurrent nets under torch.nn's names, and what PyTorch computes from them.

Needs torch and safetensors. Everything follows from the names, so a second run writes the same numbers. golden.safetensors holds x
(ids), labels (classifiers), logits, the gradient of every parameter (grad.NAME) and train.losses: three AdamW steps, lr 1e-2.
"""
import json
import zlib
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

HERE = Path(__file__).parent / "recurrent"
VOCAB, WIDTH, HIDDEN, ROWS, LENGTH = 13, 6, 9, 3, 11
NETS = {
    "rnn": dict(architecture="rnn", num_layers=2),
    "rnn_relu": dict(architecture="rnn", nonlinearity="relu", bias=False, num_layers=2),
    "lstm_bidirectional": dict(architecture="lstm", bidirectional=True, num_layers=2),
    "lstm_projected": dict(architecture="lstm", proj_size=4, num_layers=3),
    "lstm_both": dict(architecture="lstm", proj_size=4, bidirectional=True, bias=False, num_layers=2),
    "gru_bidirectional": dict(architecture="gru", bidirectional=True, num_layers=3),
    "gru_classes": dict(architecture="gru", bidirectional=True, num_layers=2, num_labels=4),
    "lstm_classes": dict(architecture="lstm", num_classes=3, num_layers=1),
}


class Net(nn.Module):
    """ids (rows, length) -> logits of each token, or with classes of each row, from its last state."""

    def __init__(self, architecture, num_labels=None, num_classes=None, **options):
        super().__init__()
        kind = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}[architecture]
        self.classes = num_labels or num_classes
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        self.rnn = kind(WIDTH, HIDDEN, batch_first=True, **options)
        wide = (options.get("proj_size") or HIDDEN) * (2 if options.get("bidirectional") else 1)
        self.linear = nn.Linear(wide, self.classes or VOCAB)

    def forward(self, ids):
        y, state = self.rnn(self.embedding(ids))
        if self.classes:
            h = state[0] if isinstance(state, tuple) else state
            y = torch.cat([h[-2], h[-1]], 1) if self.rnn.bidirectional else h[-1]
        return self.linear(y)


def loss_of(model, x, labels):
    logits = model(x)
    if labels is not None:
        return F.cross_entropy(logits, labels)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), x[:, 1:].flatten())


def make(name, options):
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    model = Net(**options)
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=generator) * (0.2 if p.dim() == 1 else 1.4 / p.shape[1] ** 0.5)
    folder = HERE / name
    folder.mkdir(parents=True, exist_ok=True)
    config = dict(options, vocab_size=VOCAB, embedding_size=WIDTH, hidden_size=HIDDEN)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")
    x = torch.randint(0, VOCAB, (ROWS, LENGTH), generator=generator)
    labels = torch.randint(0, model.classes, (ROWS,), generator=generator) if model.classes else None
    out = {"x": x, "logits": model(x)}
    if labels is not None:
        out["labels"] = labels
    loss_of(model, x, labels).backward()
    out.update({f"grad.{n}": p.grad.clone() for n, p in model.named_parameters()})
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0), []
    for _ in range(3):
        optimizer.zero_grad()
        loss = loss_of(model, x, labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    out["train.losses"] = torch.stack(losses)
    save_file({k: v.detach().contiguous() for k, v in out.items()}, folder / "golden.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, options in NETS.items():
        make(name, options)
