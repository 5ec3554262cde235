#!/usr/bin/env python3
"""The classifiers of `attn train classify` in PyTorch: what their losses are compared with, their accuracy and their speed.

    classify_torch.py fixtures                                # writes tests/golden/classify: 50 losses of each model, in f64
    classify_torch.py --attn target/release/attn --data DIR --vectors GLOVE speed   # epochs on SST-2, by turns
    classify_torch.py --attn target/release/attn --data DIR --vectors GLOVE table --set sst2|imdb   # accuracy and F1

DIR holds sst2/{train,dev}.tsv (text, label) and imdb/{train,dev}.tsv (id, label, text). Needs torch 2.11 and safetensors.
The twins see the rows that our encoder makes of the same texts: words between white space (SST-2 is split already) or
Unicode words, lower-cased, and the table of the same vectors with two rows of zeros before it.
"""

import argparse
import json
import math
import random
import re
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

FIXTURES = Path(__file__).resolve().parents[2] / "tests" / "golden" / "classify"


def valid(tokens, lengths):
    """(B,T): which places are a text's own."""
    return torch.arange(tokens.shape[1])[None, :] < lengths[:, None]


def mean(x, mask):
    return (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


class Twin(nn.Module):
    """Parameters have our names; what is called differently in PyTorch is renamed in `ours`."""

    def __init__(self, c, table=None):
        super().__init__()
        self.c, model = c, c["model"]
        classes = 1 if model == "head-attention" and len(c["labels"]) == 2 else len(c["labels"])
        width = c["width"]
        if model == "bow-logreg":
            self.bag = nn.Linear(c["vocabulary"], classes)
            return
        self.embedding = nn.Embedding(c["vocabulary"], width)
        if table is not None:
            self.embedding = nn.Embedding.from_pretrained(table, freeze=c["freeze_embeddings"])
        if c["positions"]:
            self.positions = nn.Embedding(c["max_length"], width)
        if model == "self-attention":
            bound = 1 / math.sqrt(width)
            sizes = {"w_q": c["key_width"], "w_k": c["key_width"], "w_v": width}
            for name, columns in sizes.items():
                drawn = torch.empty(width, columns).uniform_(-bound, bound)
                setattr(self, name, nn.Parameter(drawn, not c["freeze_heads"]))
            pooled = c["max_length"] if c["pool"] == "features" else width
        elif model == "head-attention":
            self.heads = nn.Parameter(torch.empty(width, c["heads"]).uniform_(-0.5, 0.5), not c["freeze_heads"])
            pooled = width * c["heads"]
        elif model in ("gru", "rnn"):
            layer = nn.GRU if model == "gru" else nn.RNN
            self.rnn = layer(width, c["units"], c["layers"], batch_first=True, bidirectional=c["bidirectional"])
            pooled = c["units"] * (1 + c["bidirectional"])
        elif model == "transformer":
            def block():
                return nn.TransformerEncoderLayer(width, c["heads"], 4 * width, 0.0, "gelu", 1e-5, True, True)
            self.layers = nn.ModuleList([block() for _ in range(c["layers"])])
            self.norm = nn.LayerNorm(width)
            pooled = width
        else:
            pooled = width
        self.hidden = nn.ModuleList()
        for size in c["hidden"]:
            self.hidden.append(nn.Linear(pooled, size))
            pooled = size
        self.linear = nn.Linear(pooled, classes)

    def forward(self, tokens, lengths):
        c, mask = self.c, valid(tokens, lengths)
        model = c["model"]
        if c["padding"] == "zeroed":
            if c["pool"] == "features":
                tokens = F.pad(tokens, (0, c["max_length"] - tokens.shape[1]))
            mask = torch.ones_like(tokens, dtype=torch.bool)
        if model == "bow-logreg":
            bag = torch.zeros(len(tokens), c["vocabulary"], dtype=self.bag.weight.dtype)
            bag.scatter_add_(1, tokens, mask.to(bag.dtype))
            return self.bag(bag if c["counts"] else bag.clamp(max=1))
        x = self.embedding(tokens)
        if c["positions"]:
            x = x + self.positions.weight[: x.shape[1]]
        if model == "self-attention":
            scores = (x @ self.w_q) @ (x @ self.w_k).mT / math.sqrt(c["key_width"])
            y = scores.masked_fill(~mask[:, None, :], -math.inf).softmax(-1) @ (x @ self.w_v)
            if c["pool"] == "features":
                z = F.pad(y.mean(2) * mask, (0, c["max_length"] - y.shape[1]))
            else:
                z = mean(y, mask)
        elif model == "head-attention":
            a = (x @ self.heads).masked_fill(~mask[..., None], -math.inf).softmax(1)  # (B,T,h)
            z = (a.mT @ x).flatten(1)
        elif model in ("gru", "rnn"):
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            states = self.rnn(packed)[1]
            z = states[-(1 + c["bidirectional"]):].transpose(0, 1).flatten(1)
        elif model == "transformer":
            for block in self.layers:
                x = block(x, src_key_padding_mask=~mask)
            z = mean(self.norm(x), mask)
        else:
            z = mean(x, mask)
        for layer in self.hidden:
            z = layer(z).tanh()
        z = self.linear(z)
        return z[:, 0] if z.shape[1] == 1 else z

    def loss(self, tokens, lengths, targets):
        z = self(tokens, lengths)
        if z.dim() == 1:
            return F.binary_cross_entropy_with_logits(z, targets.to(z.dtype))
        return F.cross_entropy(z, targets)

    def ours(self):
        """Parameters under our names, in our layouts."""
        renamed = {"bag.weight": lambda t: t.mT}
        out = {}
        for name, t in self.named_parameters():
            ours = name.replace("self_attn.in_proj_", "self_attn.in_proj.")
            out[ours] = renamed.get(name, lambda t: t)(t.detach()).contiguous().clone()
        return out


def config(model, **over):
    base = dict(model=model, labels=["0", "1"], vocabulary=41, width=8, freeze_embeddings=False, hidden=[], heads=2,
                freeze_heads=False, key_width=5, pool="tokens", padding="masked", pad_row=0, positions=False, max_length=20, layers=1, units=6,
                bidirectional=True, attention="softmax-attention", dropout=0.0, counts=True, tokenizer="words",
                lowercase=False, special={"pad": None, "unk": None})
    base |= dict(hidden=[5]) if model == "mean-ffnn" else {}
    base |= dict(width=0) if model == "bow-logreg" else {}
    return base | over


ADAM = dict(optimizer="adam", lr=0.01, weight_decay_l2=0.0)
CASES = {
    "mean-logreg": (config("mean-logreg"), dict(optimizer="adam", lr=0.05, weight_decay_l2=0.001)),
    "mean-logreg-frozen-three-labels": (config("mean-logreg", freeze_embeddings=True, labels=list("abc")), ADAM),
    "mean-ffnn": (config("mean-ffnn"), ADAM),
    "bow-logreg": (config("bow-logreg"), ADAM),
    "bow-logreg-sgd": (config("bow-logreg"), dict(optimizer="sgd", lr=0.1, weight_decay_l2=0.01)),
    "self-attention": (config("self-attention"), ADAM),
    "self-attention-frozen": (config("self-attention", freeze_heads=True, pool="features"), ADAM),
    "self-attention-features": (config("self-attention", pool="features"), ADAM),
    "self-attention-features-zeroed": (config("self-attention", pool="features", padding="zeroed"), ADAM),
    "head-attention-zeroed": (
        config("head-attention", padding="zeroed"), dict(optimizer="adamw", lr=0.01, weight_decay=0.01)),
    "head-attention": (config("head-attention"), dict(optimizer="adamw", lr=0.01, weight_decay=0.01)),
    "head-attention-frozen": (
        config("head-attention", freeze_heads=True, freeze_embeddings=True),
        dict(optimizer="adamw", lr=0.01, weight_decay=0.01),
    ),
    "head-attention-positions-hidden": (config("head-attention", positions=True, hidden=[7, 4]), ADAM),
    "gru": (config("gru", layers=2), ADAM),
    "rnn": (config("rnn", bidirectional=False, layers=2), ADAM),
    # At 0.01 it learns the 24 texts by heart: of a loss of 0.02, 1e-5 is less than f32 resolves (f64 agrees to 1e-13).
    "transformer": (config("transformer", layers=2, positions=True), ADAM | dict(lr=0.001)),
}


def optimizer(parameters, settings, **more):
    lr = settings["lr"]
    parameters = [p for p in parameters if p.requires_grad]
    if settings["optimizer"] == "adamw":
        return torch.optim.AdamW(parameters, lr, weight_decay=settings["weight_decay"], **more)
    if settings["optimizer"] == "sgd":
        return torch.optim.SGD(parameters, lr, weight_decay=settings["weight_decay_l2"], **more)
    return torch.optim.Adam(parameters, lr, weight_decay=settings["weight_decay_l2"], **more)


def fixtures(_):
    """24 texts of 1 to 20 words, 4 a step, in their order: 50 losses."""
    torch.set_default_dtype(torch.float64)
    FIXTURES.mkdir(parents=True, exist_ok=True)
    for name, (c, settings) in CASES.items():
        torch.manual_seed(7)
        draw = random.Random(3)
        lengths = torch.tensor([draw.randint(1, 20) for _ in range(24)])
        tokens = torch.tensor([[draw.randrange(1, 41) if t < n else 0 for t in range(20)] for n in lengths.tolist()])
        targets = torch.tensor([draw.randrange(len(c["labels"])) for _ in range(24)])
        twin = Twin(c)
        if c["freeze_embeddings"]:
            twin.embedding.weight.requires_grad_(False)
        initial = twin.ours()
        step, losses = optimizer(twin.parameters(), settings), []
        for i in range(50):
            rows = [(4 * i + r) % 24 for r in range(4)]
            longest = int(lengths[rows].max())
            loss = twin.loss(tokens[rows, :longest], lengths[rows], targets[rows])
            step.zero_grad()
            loss.backward()
            step.step()
            losses.append(loss.item())
        tensors = {"parameter." + k: t for k, t in initial.items()} | {
            "tokens": tokens.int(), "lengths": lengths.int(), "targets": targets.int(), "losses": torch.tensor(losses)}
        # One entry: the order of several would differ from run to run.
        described = json.dumps({"config": c, "settings": settings})
        save_file(tensors, FIXTURES / f"{name}.safetensors", metadata={"case": described})
        print(f"{name:34} {losses[0]:.6f} … {losses[-1]:.6f}")


def read(path, columns):
    # `splitlines` would also break at characters that stand inside some reviews.
    rows = [line.split("\t") for line in Path(path).read_text().split("\n") if line]
    return [(row[columns[0]].lower(), row[columns[1]]) for row in rows]


class Data:
    """A data set as rows of the vectors' table."""

    def __init__(self, args, name):
        self.name, self.flags = name, ["--lowercase"]
        columns = (0, 1) if name == "sst2" else (2, 1)
        self.flags += ["--text-column", str(columns[0] + 1), "--label-column", str(columns[1] + 1)]
        self.paths = {part: Path(args.data) / name / f"{part}.tsv" for part in ("train", "dev")}
        self.flags += ["--tokenizer", "whitespace" if name == "sst2" else "regexp"]
        split = str.split if name == "sst2" else re.compile(r"\w+").findall
        lines = Path(args.vectors).read_text().rstrip("\n").split("\n")
        words = [line.split(" ")[0] for line in lines]
        vectors = [[float(x) for x in line.split(" ")[1:]] for line in lines]
        self.table = torch.tensor([[0.0] * len(vectors[0])] * 2 + vectors)
        self.index = {word: i + 2 for i, word in enumerate(words)}
        raw = {part: read(path, columns) for part, path in self.paths.items()}
        self.labels = sorted({label for _, label in raw["train"]})
        self.texts = {
            part: [(split(text), self.labels.index(label)) for text, label in rows] for part, rows in raw.items()}
        self.counted = {}
        for text, _ in self.texts["train"]:
            for word in text:
                self.counted.setdefault(word, len(self.counted) + 2)

    def rows(self, part, model):
        index = self.counted if model == "bow-logreg" else self.index
        skips = model in ("mean-logreg", "mean-ffnn", "bow-logreg")
        found = []
        for text, label in self.texts[part]:
            row = [index.get(word, 1) for word in text]
            row = [i for i in row if i != 1] if skips else row
            found.append((torch.tensor(row or [0]), len(row), label))
        return found

    def config(self, model, freeze):
        over = dict(labels=self.labels, vocabulary=len(self.table), width=self.table.shape[1], heads=4, key_width=64,
                    units=64, freeze_embeddings=freeze)
        if model == "mean-ffnn":
            over["hidden"] = [20]
        if model == "bow-logreg":
            over |= dict(vocabulary=len(self.counted) + 2, freeze_embeddings=False, width=0)
        return config(model, **over)


def batch(rows):
    tokens = nn.utils.rnn.pad_sequence([r[0] for r in rows], batch_first=True)
    return tokens, torch.tensor([r[1] for r in rows]), torch.tensor([r[2] for r in rows])


def epoch(twin, step, rows, size, order):
    """Seconds of an epoch's steps. Batches of 1 are made before: no padding, no mask to be built from lists."""
    batches = [batch([rows[i] for i in order[at:at + size]]) for at in range(0, len(order), size)]
    start = time.perf_counter()
    total = 0.0
    for tokens, lengths, targets in batches:
        loss = twin.loss(tokens, lengths, targets)
        step.zero_grad()
        loss.backward()
        step.step()
        total += loss.item()
    return time.perf_counter() - start


@torch.no_grad()
def evaluated(twin, rows):
    right, counts = 0, [0, 0, 0]
    for at in range(0, len(rows), 32):
        tokens, lengths, targets = batch(rows[at:at + 32])
        z = twin(tokens, lengths)
        said = (z > 0).long() if z.dim() == 1 else z.argmax(1)
        right += (said == targets).sum().item()
        counts[0] += ((said == 1) & (targets == 1)).sum().item()
        counts[1] += (said == 1).sum().item()
        counts[2] += (targets == 1).sum().item()
    return right / len(rows), 2 * counts[0] / max(counts[1] + counts[2], 1)


def attn(args, data, model, flags, out):
    """Our run: best dev accuracy and F1, and seconds of the fastest epoch."""
    command = [args.attn, "train", "classify", "--model", model, "--out", out, "--device", "cpu", "--threads",
               str(args.threads), "--train", data.paths["train"], "--dev", data.paths["dev"], *data.flags, *flags]
    if model != "bow-logreg":
        command += ["--vectors", args.vectors]
    done = subprocess.run([str(x) for x in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    rows = [json.loads(line) for line in (Path(out) / "log.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "dev_accuracy" in row]
    best = max(rows, key=lambda row: row["dev_accuracy"])
    return best["dev_accuracy"], best["dev_f1"], [row["epoch_seconds"] for row in rows]


def speed(args):
    """Epochs of head-attention on SST-2, AdamW: PyTorch and ours by turns, the fastest of each."""
    data = Data(args, "sst2")
    rows = data.rows("train", "head-attention")
    settings = dict(optimizer="adamw", lr=1e-3, weight_decay=0.01)
    for size in (1, 64):
        for freeze in (True, False):
            texts = rows if freeze or size > 1 else rows[: args.most]
            best = {"torch": math.inf, "torch fused": math.inf, "attn": math.inf}
            for turn in range(args.turns):
                for name, more in (("torch", {}), ("torch fused", dict(fused=True))):
                    torch.manual_seed(turn)
                    twin = Twin(data.config("head-attention", freeze), data.table.clone())
                    order = torch.randperm(len(texts)).tolist()
                    seconds = epoch(twin, optimizer(twin.parameters(), settings, **more), texts, size, order)
                    best[name] = min(best[name], seconds)
                with tempfile.TemporaryDirectory() as out:
                    flags = ["--optimizer", "adamw", "--lr", "1e-3", "--batch-size", size, "--epochs", 1 if not freeze else 3]
                    flags += ["--freeze-embeddings"] if freeze else []
                    flags += ["--examples", len(texts)] if len(texts) < len(rows) else []
                    best["attn"] = min(best["attn"], *attn(args, data, "head-attention", flags, out)[2])
            shares = ", ".join(f"{name} {s:.3f} s" for name, s in best.items())
            ratio = best["attn"] / min(best["torch"], best["torch fused"])
            print(f"batch {size}, {len(texts)} texts, {'frozen' if freeze else 'trained'}: {shares}; {ratio:.3f} of PyTorch",
                  flush=True)


def interval(args, data, checkpoint):
    """The bootstrap interval of a checkpoint's dev accuracy."""
    with tempfile.TemporaryDirectory() as out:
        file = Path(out) / "eval.json"
        columns = [flag for flag in data.flags if flag not in ("--lowercase", "--tokenizer", "whitespace", "regexp")]
        command = [args.attn, "eval", "classify", "--checkpoint", checkpoint, "--test", data.paths["dev"], "--json", file]
        subprocess.run([str(x) for x in [*command, "--device", "cpu", *columns]], check=True, capture_output=True)
        found = json.loads(file.read_text())["rows"][0]["accuracy"]
        return found["low"], found["high"]


def table(args):
    """Best dev accuracy and F1 over epochs (means over seeds) and the fastest epoch: ours and PyTorch's, the same settings."""
    data = Data(args, args.set)
    print("set model epochs | attn: accuracy [95 % interval, first seed] F1 s/epoch | PyTorch: accuracy F1 s/epoch | verdict")
    for model in args.models.split(","):
        freeze = model != "bow-logreg"
        epochs = args.epochs or (100 if model.startswith("mean-") else 10)
        settings = dict(optimizer="adam", lr=1e-3, weight_decay_l2=1e-5)
        flags = ["--lr", "1e-3", "--weight-decay-l2", "1e-5", "--batch-size", args.batch, "--epochs", epochs,
                 "--best-by", "accuracy"]
        flags += ["--freeze-embeddings"] if freeze else []
        found = {"attn": [], "torch": []}
        for seed in range(1, args.seeds + 1):
            with tempfile.TemporaryDirectory() as out:
                accuracy, f1, seconds = attn(args, data, model, [*flags, "--seed", seed], out)
                if seed == 1:
                    low, high = interval(args, data, Path(out) / "best")
            found["attn"].append((accuracy, f1, min(seconds)))
            torch.manual_seed(seed)
            twin = Twin(data.config(model, freeze), None if model == "bow-logreg" else data.table.clone())
            step = optimizer(twin.parameters(), settings)
            train, dev = data.rows("train", model), data.rows("dev", model)
            best, fastest = (0.0, 0.0), math.inf
            for _ in range(epochs):
                order = torch.randperm(len(train)).tolist()
                fastest = min(fastest, epoch(twin, step, train, args.batch, order))
                best = max(best, evaluated(twin, dev))
            found["torch"].append((*best, fastest))
        means = {name: [statistics.mean(r[i] for r in all_) for i in (0, 1)] for name, all_ in found.items()}
        fastest = {name: min(r[2] for r in all_) for name, all_ in found.items()}
        lead, half = means["attn"][0] - means["torch"][0], (high - low) / 2
        verdict = "above" if lead >= 0 else "within" if -lead <= half else "BELOW"
        shown = {name: (f"{means[name][0]:.4f}", f"{means[name][1]:.4f} {fastest[name]:.3f} s") for name in found}
        ours, theirs = shown["attn"], shown["torch"]
        print(f"{args.set} {model:14} {epochs:3} | {ours[0]} [{low:.4f}, {high:.4f}] {ours[1]} | {' '.join(theirs)} | {verdict}",
              flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["fixtures", "speed", "table"])
    parser.add_argument("--attn", default="target/release/attn")
    parser.add_argument("--data")
    parser.add_argument("--vectors")
    parser.add_argument("--set", default="sst2", choices=["sst2", "imdb"])
    parser.add_argument("--models", default="mean-logreg,mean-ffnn,bow-logreg,head-attention,self-attention,gru,rnn,transformer")
    parser.add_argument("--epochs", type=int, help="100 for models of averages, else 10")
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--most", type=int, default=300, help="texts of an epoch with trained vectors at batch 1, which is slow")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    globals()[args.what](args)


if __name__ == "__main__":
    main()
