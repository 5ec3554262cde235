#!/usr/bin/env python3
"""A compact minGPT in PyTorch, to compare `attn train lm` with: same model, optimiser, split and evaluation.

    train_torch.py --attn target/release/attn --text input.txt losses   # 50 losses from the same weights, 1e-5, for
                                                                        # every optimiser and two kinds of positions
    train_torch.py --attn target/release/attn --text input.txt speed    # a step of each, side by side
    train_torch.py --attn target/release/attn --text input.txt quality  # validation loss of three seeds each
    train_torch.py --attn target/release/attn --text input.txt reading  # transformers reads our checkpoint alike
    train_torch.py --attn target/release/attn head                      # a step at vocabulary 50,257, B2 T256, by turns
    train_torch.py golden                                               # what tests/losses.rs compares with

Needs torch 2.11, numpy, safetensors; for `reading` also transformers. gpt-nano, block 128, batch 16, no dropout throughout.
"""

import argparse
import copy
import json
import math
import random
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

LAYERS, HEADS, WIDTH, BLOCK, BATCH, LR = 3, 3, 48, 128, 16, 3e-3
# Rates at which the loss falls without jumps. Adagrad with its default, 1e-2, jumps from 3.3 to 5.6 at step 8, and
# rounding decides what follows: PyTorch in f32 leaves PyTorch in f64 by 2e-5 there, and by 0.2 at step 18.
RATES = {"adamw": LR, "adam": LR, "sgd": 0.1, "adagrad": 1e-3}


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.c_attn = nn.Linear(WIDTH, 3 * WIDTH)
        self.c_proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = (y.view(b, t, HEADS, c // HEADS).transpose(1, 2) for y in self.c_attn(x).split(WIDTH, 2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # T = S, so top-left is bottom-right
        return self.c_proj(y.transpose(1, 2).reshape(b, t, c))


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.c_fc = nn.Linear(WIDTH, 4 * WIDTH)
        self.c_proj = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(WIDTH), Attention()
        self.ln_2, self.mlp = nn.LayerNorm(WIDTH), Mlp()

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


def sinusoidal():
    """The course's positions: dimension i has its own argument k / 10000^(i/d), sine for even i, cosine for odd."""
    i = torch.arange(WIDTH, dtype=torch.float64)
    argument = torch.arange(BLOCK, dtype=torch.float64)[:, None] / 10000 ** (i / WIDTH)
    return torch.where(i % 2 == 0, argument.sin(), argument.cos()).float()


class Gpt(nn.Module):
    def __init__(self, vocabulary, positions="learned"):
        super().__init__()
        self.transformer = nn.ModuleDict(
            dict(
                wte=nn.Embedding(vocabulary, WIDTH),
                wpe=nn.Embedding(BLOCK, WIDTH),
                h=nn.ModuleList(Block() for _ in range(LAYERS)),
                ln_f=nn.LayerNorm(WIDTH),
            )
        )
        if positions == "sinusoidal":
            del self.transformer["wpe"]
            self.register_buffer("positions", sinusoidal())
        self.lm_head = nn.Linear(WIDTH, vocabulary, bias=False)
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(p)
            elif "ln_" not in name:
                nn.init.normal_(p, 0.0, 0.02 / math.sqrt(2 * LAYERS) if "c_proj" in name else 0.02)

    def forward(self, tokens, targets):
        t = self.transformer
        positions = t.wpe.weight if "wpe" in t else self.positions
        x = t.wte(tokens) + positions[: tokens.shape[1]]
        for block in t.h:
            x = block(x)
        logits = self.lm_head(t.ln_f(x))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def hugging_face(self):
        """Names are the same already; blocks' linear weights are stored (in, out) there."""
        turn = lambda name, p: p.t() if ".h." in name and p.dim() == 2 else p
        return {name: turn(name, p.detach()).contiguous() for name, p in self.named_parameters()}

    def load_hugging_face(self, tensors):
        with torch.no_grad():
            for name, p in self.named_parameters():
                p.copy_(tensors[name].t() if ".h." in name and p.dim() == 2 else tensors[name])

    def optimizer(self, name="adamw"):
        if name == "sgd":
            return torch.optim.SGD(self.parameters(), lr=RATES[name], momentum=0.9)
        if name == "adam":
            return torch.optim.Adam(self.parameters(), lr=RATES[name])
        if name == "adagrad":
            return torch.optim.Adagrad(self.parameters(), lr=RATES[name])
        decayed = [p for m in self.modules() if isinstance(m, nn.Linear) for p in [m.weight]]
        ids = {id(p) for p in decayed}
        others = [p for p in self.parameters() if id(p) not in ids]
        groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), eps=1e-8)


def read(path):
    text = open(path, encoding="utf-8", newline="").read()
    characters = sorted(set(text))
    ids = {c: i for i, c in enumerate(characters)}
    tokens = torch.tensor([ids[c] for c in text])
    cut = len(tokens) * 9 // 10
    return len(characters), tokens[:cut], tokens[cut:]


def at(tokens, starts):
    x = torch.stack([tokens[s : s + BLOCK] for s in starts])
    y = torch.stack([tokens[s + 1 : s + 1 + BLOCK] for s in starts])
    return x, y


def sequential(tokens, step):
    blocks = (len(tokens) - 1) // BLOCK
    return at(tokens, [(step * BATCH + r) % blocks * BLOCK for r in range(BATCH)])


def step(model, optimizer, batch):
    loss = model(*batch)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


@torch.no_grad()
def validation_loss(model, tokens):
    blocks = (len(tokens) - 1) // BLOCK
    total = 0.0
    for first in range(0, blocks, 64):
        rows = range(first, min(first + 64, blocks))
        total += model(*at(tokens, [r * BLOCK for r in rows])).item() * len(rows)
    return total / blocks


def attn(args, out, steps, *flags, lr=LR):
    command = [args.attn, "train", "lm", "--text", args.text, "--preset", "gpt-nano", "--block-size", BLOCK]
    command += ["--batch-size", BATCH, "--steps", steps, "--lr", lr, "--dropout", 0, "--device", args.device]
    command += ["--threads", args.threads, "--out", out, *flags]
    subprocess.run([str(c) for c in command], check=True)
    return [json.loads(line) for line in open(Path(out) / "log.jsonl")]


def losses(args):
    results = [losses_of(args, p, o) for p in args.positions.split(",") for o in args.optimizers.split(",")]
    return all(results)


def losses_of(args, positions, optimizer):
    vocabulary, train, _ = read(args.text)
    torch.manual_seed(1)
    model = Gpt(vocabulary, positions)
    with tempfile.TemporaryDirectory() as folder:
        init = Path(folder) / "init"
        init.mkdir()
        save_file(model.hugging_face(), init / "model.safetensors", metadata={"format": "pt"})
        flags = ["--init", init, "--data-order", "sequential", "--optimizer", optimizer, "--positions", positions]
        flags += ["--momentum", 0.9] if optimizer == "sgd" else []
        log = attn(args, f"{folder}/out", args.steps, *flags, lr=RATES[optimizer])
        after = load_file(f"{folder}/out/model.safetensors")
    ours = [row["loss"] for row in log if "loss" in row]
    update = model.optimizer(optimizer)
    theirs = [step(model, update, sequential(train, i)) for i in range(args.steps)]
    worst = max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))
    if args.verbose:
        for i, (a, b) in enumerate(zip(ours, theirs), 1):
            print(f"step {i:3}  attn {a:.7f}  torch {b:.7f}  relative {abs(a - b) / abs(b):.1e}")
    weights = max((after[n] - p).abs().max().item() for n, p in model.hugging_face().items())
    print(
        f"{positions} positions, {optimizer}: {args.steps} losses from {theirs[0]:.4f} to {theirs[-1]:.4f}, largest "
        f"relative difference {worst:.2e} (bound 1e-5); of weights, absolute, {weights:.1e}",
        flush=True,
    )
    return worst <= 1e-5


def golden(_):
    """Weights, and 50 losses in f64 for each optimiser and kind of positions, of a model small enough for any test."""
    global LAYERS, HEADS, WIDTH, BLOCK, BATCH
    LAYERS, HEADS, WIDTH, BLOCK, BATCH = 2, 2, 16, 12, 4
    folder = Path(__file__).parents[2] / "tests/golden/training"
    vocabulary, train, _ = read(folder / "text.txt")
    found = {}
    for positions in ("learned", "sinusoidal"):
        torch.manual_seed(1)
        start = Gpt(vocabulary, positions)
        (folder / positions).mkdir(exist_ok=True)
        save_file(start.hugging_face(), folder / positions / "model.safetensors", metadata={"format": "pt"})
        for optimizer in ("adamw", "adam", "sgd", "adagrad"):
            model = copy.deepcopy(start).double()
            update = model.optimizer(optimizer)
            losses = [step(model, update, sequential(train, i)) for i in range(50)]
            found[f"{positions} {optimizer}"] = {"lr": RATES[optimizer], "losses": losses}
            print(f"{positions} {optimizer}: {losses[0]:.4f} to {losses[-1]:.4f}")
    (folder / "losses.json").write_text(json.dumps(found, indent=1) + "\n")
    return True


def speed(args):
    vocabulary, train, _ = read(args.text)
    torch.manual_seed(1)
    model = Gpt(vocabulary)
    optimizer = model.optimizer()
    times = {"torch": [], "attn": []}
    for i in range(args.steps + 20):
        batch = sequential(train, i)
        start = time.perf_counter()
        step(model, optimizer, batch)
        times["torch"].append((time.perf_counter() - start) * 1e3)
    with tempfile.TemporaryDirectory() as folder:
        log = attn(args, f"{folder}/out", args.steps + 20, "--data-order", "sequential")
    times["attn"] = [BATCH * BLOCK / row["tokens_per_s"] * 1e3 for row in log if "loss" in row]
    medians = {name: statistics.median(ms[20:]) for name, ms in times.items()}
    minima = {name: min(ms[20:]) for name, ms in times.items()}
    for name in times:
        print(f"{name:6} median {medians[name]:6.2f} ms  min {minima[name]:6.2f} ms")
    print(f"attn takes {medians['attn'] / medians['torch']:.2f} of torch's time (aim 0.5)")
    return medians["attn"] < medians["torch"]


def head(args):
    """The two by turns, as other work on the machine slows whichever runs; minima are compared. Needs no text: one of
    as many different characters as the vocabulary has is made."""
    global BLOCK, BATCH
    BLOCK, BATCH = args.block, args.batch
    characters = [chr(0x10000 + i) for i in range(args.vocabulary)]
    generator = random.Random(1)
    generator.shuffle(characters)
    torch.manual_seed(1)
    model = Gpt(args.vocabulary)
    optimizer = model.optimizer()
    times = {"torch": [], "attn": []}
    with tempfile.TemporaryDirectory() as folder:
        args.text = f"{folder}/text"
        Path(args.text).write_text("".join(characters + generator.choices(characters, k=args.vocabulary // 4)), encoding="utf-8")
        vocabulary, train, _ = read(args.text)
        assert vocabulary == args.vocabulary
        for turn in range(args.turns):
            for i in range(args.steps):
                start = time.perf_counter()
                step(model, optimizer, sequential(train, turn * args.steps + i))
                times["torch"].append((time.perf_counter() - start) * 1e3)
            log = attn(args, f"{folder}/out", args.steps, "--data-order", "sequential", "--overwrite")
            times["attn"] += [BATCH * BLOCK / row["tokens_per_s"] * 1e3 for row in log if "loss" in row]
    for name, ms in times.items():
        print(f"{name:6} min {min(ms):7.1f} ms  median {statistics.median(ms):7.1f} ms  of {len(ms)} steps")
    ratio = min(times["attn"]) / min(times["torch"])
    print(f"vocabulary {args.vocabulary}, {BATCH}×{BLOCK} tokens: attn takes {ratio:.2f} of torch's time (aim 0.5)")
    return ratio <= 0.5


def quality(args):
    vocabulary, train, validation = read(args.text)
    found = {"torch": [], "attn": []}
    for seed in (1, 2, 3):
        torch.manual_seed(seed)
        model = Gpt(vocabulary)
        optimizer = model.optimizer()
        for _ in range(args.steps):
            step(model, optimizer, at(train, torch.randint(len(train) - BLOCK, (BATCH,)).tolist()))
        found["torch"].append(validation_loss(model, validation))
        with tempfile.TemporaryDirectory() as folder:
            log = attn(args, f"{folder}/out", args.steps, "--seed", seed)
            found["attn"].append(log[-1]["val_loss"])
            # Its weights, evaluated here: the two evaluations must agree.
            model.load_hugging_face(load_file(f"{folder}/out/model.safetensors"))
            again = validation_loss(model, validation)
        print(f"seed {seed}: torch {found['torch'][-1]:.4f}  attn {found['attn'][-1]:.4f} (by torch {again:.4f})")
    means = {name: statistics.mean(values) for name, values in found.items()}
    print(f"means: torch {means['torch']:.4f}  attn {means['attn']:.4f}  difference {means['attn'] - means['torch']:+.4f}")
    return abs(means["attn"] - means["torch"]) <= 0.02


def reading(args):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        attn(args, f"{folder}/out", args.steps)
        short = Path(folder) / "short.txt"
        short.write_text(open(args.text, encoding="utf-8", newline="").read()[: 3 * BLOCK + 1], newline="")
        command = [args.attn, "eval", "lm", "--checkpoint", f"{folder}/out", "--text", short]
        command += ["--json", f"{folder}/ours.json", "--device", args.device]
        subprocess.run([str(c) for c in command], check=True)
        ours = json.load(open(f"{folder}/ours.json"))["loss"]
        model, report = AutoModelForCausalLM.from_pretrained(f"{folder}/out", output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(f"{folder}/out")
    text = open(args.text, encoding="utf-8", newline="").read()[: 3 * BLOCK + 1]
    tokens = tokenizer(text, return_tensors="pt")["input_ids"][0]
    assert tokenizer.decode(tokens) == text, "the tokenizer does not give the text back"
    x, y = at(tokens, [0, BLOCK, 2 * BLOCK])
    with torch.no_grad():
        theirs = F.cross_entropy(model(x).logits.flatten(0, 1), y.flatten()).item()
    print(f"loading report {report}")
    print(f"loss: attn {ours:.7f}, transformers {theirs:.7f}, relative {abs(ours - theirs) / theirs:.1e}")
    return abs(ours - theirs) / theirs <= 1e-5


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["losses", "speed", "quality", "reading", "head", "golden"])
    parser.add_argument("--attn", help="the binary; needed by all but golden")
    parser.add_argument("--text", help="needed by all but head and golden")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, help="default: losses 50, speed 100, quality 2000, reading 20, head 5")
    parser.add_argument("--positions", default="learned,sinusoidal", help="for losses")
    parser.add_argument("--optimizers", default="adamw,sgd,adagrad", help="for losses; also adam")
    parser.add_argument("--verbose", action="store_true", help="losses: of every step")
    parser.add_argument("--vocabulary", type=int, default=50257, help="of head")
    parser.add_argument("--batch", type=int, default=2, help="rows of head's batches")
    parser.add_argument("--block", type=int, default=256, help="tokens of head's rows")
    parser.add_argument("--turns", type=int, default=4, help="how often each of the two runs its steps in head")
    args = parser.parse_args()
    if args.what != "golden" and not args.attn:
        parser.error(f"{args.what} needs --attn")
    if args.what not in ("head", "golden") and not args.text:
        parser.error(f"{args.what} needs --text")
    args.steps = args.steps or {"losses": 50, "speed": 100, "quality": 2000, "reading": 20, "head": 5, "golden": 50}[args.what]
    torch.set_num_threads(args.threads)
    modes = {"losses": losses, "speed": speed, "quality": quality, "reading": reading, "head": head, "golden": golden}
    raise SystemExit(0 if modes[args.what](args) else 1)


if __name__ == "__main__":
    main()
