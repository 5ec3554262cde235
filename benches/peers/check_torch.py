"""Agreement of `attn run` with PyTorch: in float64 and float32, and on the emulator or a GPU in 16 bits.

    pip install torch==2.11.0 numpy safetensors
    cargo build --release
    python benches/peers/check_torch.py [--attn target/release/attn] [--devices cpu,emulator] [--dtypes f32,bf16,f16]
                                        [--variants LIST] [--json FILE]

The reference is written from the formulas, with an explicit mask, in PyTorch's float64; its gradients are autograd's.
Softmax attention's features are compared likewise; the reference drops the weights that our Philox drops, from numpy.
The error of a tensor is max|x - ref| / max(max|ref|, 0.1), and max|x - ref| for gradients that are zero by identity
(dq and dk where there is one key, or in linear attention one feature). float64 must agree to 1e-10. float32 may be off by twice
what the same PyTorch code is off by in float32, plus 2e-6; likewise 16 bits, from inputs rounded to them, plus 8e-3 (bf16)
or 1e-3 (f16). On the CPU, which computes 16 bits in float32, they are not compared. Prints a table; exits 1 where one disagrees, 2 on an error.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile

import numpy
import torch
from safetensors.torch import load_file, save_file

VARIANTS = ["softmax-attention", "linear-attention", "mean-similarity-attention"]
# What float64 leaves of a gradient that is zero by identity stays below this.
ZERO = 1e-12
FLOOR = {"f64": 1e-10, "f32": 2e-6, "bf16": 8e-3, "f16": 1e-3}
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}

# B, H, Hk, T, S, Dk, Dv, causal, key_lengths
CASES = {
    "square": (2, 3, 3, 64, 64, 64, 64, False, None),
    "square causal": (2, 3, 3, 65, 65, 64, 64, True, None),
    "T != S": (2, 2, 2, 37, 91, 40, 40, False, None),
    "T < S causal": (1, 2, 2, 37, 91, 40, 40, True, None),
    "T > S causal: rows without keys": (1, 2, 2, 91, 37, 16, 16, True, None),
    "Dk 37, Dv 2": (2, 2, 2, 33, 70, 37, 2, False, None),
    "Dk 1": (1, 2, 2, 20, 31, 1, 5, False, None),
    "S 1": (2, 2, 2, 7, 1, 16, 16, False, None),
    "T 1 causal": (2, 2, 2, 1, 63, 16, 24, True, None),
    "grouped heads": (2, 6, 2, 40, 50, 32, 32, False, None),
    "grouped heads causal": (1, 4, 1, 130, 130, 80, 48, True, None),
    "ragged with a zero": (4, 2, 2, 30, 45, 24, 24, False, [45, 0, 1, 29]),
    "ragged causal": (4, 4, 2, 45, 45, 24, 40, True, [45, 0, 7, 31]),
    "ragged causal, T < S": (3, 2, 2, 20, 70, 128, 128, True, [70, 52, 3]),
    "long": (1, 2, 2, 300, 1000, 64, 64, True, None),
}
# Of softmax attention alone: sizes B, H, Hk, T, S, Dk, Dv, and what else there is. `mask` and `bias` are their shapes, with
# one row of each hiding all keys where there are rows; `sequences` the bounds among queries and keys.
FEATURES = {
    "window": dict(sizes=(2, 2, 2, 70, 70, 16, 16), window=(20, 5)),
    "window causal, T != S": dict(sizes=(1, 2, 2, 70, 150, 16, 24), window=(33, 0), causal=True),
    "window, T > S: rows without keys": dict(sizes=(1, 2, 1, 90, 40, 8, 8), window=(7, 3)),
    "window, no bound to the left": dict(sizes=(1, 2, 2, 37, 65, 8, 8), window=(-1, 2)),
    "softcap": dict(sizes=(2, 2, 2, 65, 70, 16, 16), softcap=1.5),
    "alibi": dict(sizes=(1, 4, 4, 65, 130, 16, 16), alibi=True),
    "alibi, own slopes, grouped, causal": dict(sizes=(2, 4, 2, 40, 33, 16, 8), slopes=True, causal=True),
    "bias": dict(sizes=(2, 2, 2, 65, 70, 16, 16), bias=(2, 2, 65, 70)),
    "bias for all batches and heads": dict(sizes=(2, 4, 2, 65, 130, 16, 8), bias=(1, 1, 65, 130), causal=True),
    "bias for all queries": dict(sizes=(2, 2, 2, 150, 40, 8, 8), bias=(1, 2, 1, 40)),
    "mask": dict(sizes=(2, 2, 2, 65, 70, 16, 16), mask=(2, 2, 65, 70)),
    "mask for all heads and queries": dict(sizes=(3, 2, 2, 40, 70, 16, 16), mask=(3, 1, 1, 70)),
    "mask for all batches, ragged": dict(sizes=(3, 2, 1, 40, 70, 16, 16), mask=(1, 2, 40, 70), lengths=[70, 0, 9]),
    "dropout": dict(sizes=(2, 3, 3, 65, 70, 16, 16), dropout=0.25, seed=12345678901234),
    "dropout of everything": dict(sizes=(1, 1, 1, 9, 9, 4, 4), dropout=1.0),
    "weights": dict(sizes=(2, 4, 2, 65, 70, 16, 16), weights=True, causal=True, lengths=[70, 20]),
    "packed": dict(sizes=(1, 2, 2, 80, 90, 16, 16), sequences=([0, 20, 20, 61, 80], [0, 30, 41, 41, 90])),
    "packed causal": dict(sizes=(1, 4, 2, 80, 90, 16, 8), sequences=([0, 20, 20, 61, 80], [0, 30, 41, 41, 90]), causal=True),
    "dlse": dict(sizes=(2, 2, 2, 37, 41, 16, 16), dlse=True, causal=True),
    "all but packed": dict(
        sizes=(2, 4, 2, 70, 130, 16, 24), causal=True, window=(60, 0), softcap=2.0, alibi=True, bias=(1, 4, 70, 130),
        mask=(2, 1, 70, 130), dropout=0.1, seed=7, lengths=[130, 100], weights=True, dlse=True),
    "all but ragged": dict(
        sizes=(1, 4, 4, 70, 130, 24, 16), window=(30, 9), softcap=2.0, slopes=True, bias=(1, 1, 1, 130),
        mask=(1, 4, 70, 130), dropout=0.5, seed=2**63 + 5, sequences=([0, 40, 70], [0, 61, 130]), weights=True, dlse=True),
}
# The emulator executes every thread: no need to make it run long.
SLOW = {"long"}


def visible(T, S, causal, lengths, batch, window=None, sequences=None):
    """(B,1,T,S) from the place of queries and keys; and how far each key is from its query's diagonal (T,S)."""
    t, s = torch.arange(T)[:, None], torch.arange(S)[None, :]
    diagonal, same = t + S - T, torch.ones(T, S, dtype=torch.bool)
    if sequences is not None:
        (of_q, of_k) = (torch.tensor(bounds) for bounds in sequences)
        n = torch.bucketize(t, of_q, right=True) - 1
        same = (of_k[n] <= s) & (s < of_k[n + 1])
        diagonal = t - of_q[n + 1] + of_k[n + 1]
    mask = same & (s <= diagonal) if causal else same
    if window is not None:
        left, right = (T + S if n < 0 else n for n in window)
        mask = mask & (diagonal - left <= s) & (s <= diagonal + right)
    mask = mask.expand(batch, 1, T, S)
    if lengths is not None:
        mask = mask & (torch.arange(S) < lengths[:, None])[:, None, None, :]
    return mask, (diagonal - s).abs()


def kept(shape, p, seed):
    """0 or 1/(1 - p) for each weight: Philox4x32-10, key = seed, counter = (element/4 low, high, stream 0, step 0)."""
    element = numpy.arange(math.prod(shape), dtype=numpy.uint64)
    low = numpy.uint64(0xFFFFFFFF)
    zero = numpy.zeros_like(element)
    c = [element // 4 & low, element // 4 >> numpy.uint64(32), zero, zero]
    k = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        a, b = numpy.uint64(0xD2511F53) * c[0], numpy.uint64(0xCD9E8D57) * c[2]
        key = [numpy.uint64(x) for x in k]
        c = [(b >> numpy.uint64(32)) ^ c[1] ^ key[0], b & low, (a >> numpy.uint64(32)) ^ c[3] ^ key[1], a & low]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    word = numpy.choose((element % 4).astype(int), c)
    uniform = (word >> numpy.uint64(8)).astype(numpy.float32) * numpy.float32(2.0**-24)
    keep = torch.from_numpy(uniform >= numpy.float32(p)).reshape(shape)
    return keep.double() / (1 - p) if p < 1 else torch.zeros(shape)


def reference(variant, q, k, v, mask, causal, bias=None, softcap=None, alibi=None, keep=None):
    """{"out": …} and for softmax attention {"lse": …}; rows that see nothing give zeros and lse = -inf."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    if variant == "linear-attention":
        phi = lambda x: torch.nn.functional.elu(x) + 1
        if not causal:
            # As it is written where it is to be linear: keys and values are summed up first. (The float32 errors of
            # the two forms differ where differences cancel, as they do in a sequence of one key.)
            kept = phi(k) * mask[:, :, :1, :].transpose(-1, -2)
            total = phi(q) @ kept.sum(-2)[..., None]
            return {"out": phi(q) @ (kept.transpose(-1, -2) @ v) / torch.where(total == 0, 1, total)}
        weights = (phi(q) @ phi(k).transpose(-1, -2)) * mask
        total = weights.sum(-1, keepdim=True)
        return {"out": (weights / torch.where(total == 0, 1, total)) @ v}
    if variant == "softmax-attention":
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    else:
        scores = q.mean(-1)[..., :, None] * k.mean(-1)[..., None, :]
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if alibi is not None:
        scores = scores - alibi.to(scores.dtype)
    if bias is not None:
        scores = scores + bias
        mask = mask & (bias > -math.inf)
    mask = mask.expand(scores.shape)
    seen = mask.any(-1, keepdim=True)
    # A row of -inf would make NaN, also in its gradient: let it be zeros, and then discard it.
    scores = scores.masked_fill(~mask & seen, -math.inf).masked_fill(~seen, 0.0)
    weights = torch.softmax(scores, -1) * seen
    out = (weights if keep is None else weights * keep.to(weights.dtype)) @ v
    if variant != "softmax-attention":
        return {"out": out}
    lse = torch.logsumexp(scores, -1).masked_fill(~seen.squeeze(-1).expand(scores.shape[:-1]), -math.inf)
    return {"out": out, "lse": lse, "weights": weights}


def with_gradients(variant, tensors, mask, causal, dtype, weights=False, **features):
    """What `attn run` gives, computed by PyTorch in `dtype`."""
    names = [n for n in ("q", "k", "v", "bias") if n in tensors]
    leaves = {n: tensors[n].to(dtype).requires_grad_() for n in names}
    results = reference(variant, **leaves, mask=mask, causal=causal, **features)
    if not weights:
        results.pop("weights", None)
    grads = [tensors[n].to(dtype) for n in ("dout", "dlse") if n in tensors]
    roots = [results["out"], results.get("lse")][: len(grads)]
    gradients = torch.autograd.grad(roots, list(leaves.values()), grads, allow_unused=True)
    for (n, x), g in zip(leaves.items(), gradients):
        results[f"d{n}"] = torch.zeros_like(x) if g is None else g
    return {name: x.detach().double() for name, x in results.items()}


def prepare(f, dtype):
    """A case of FEATURES: `attn run`'s tensors, rounded to dtype, and flags, the mask, and what else the reference takes."""
    B, H, Hk, T, S, Dk, Dv = f["sizes"]
    shapes = {"q": (B, H, T, Dk), "k": (B, Hk, S, Dk), "v": (B, Hk, S, Dv), "dout": (B, H, T, Dv)}
    tensors = {name: torch.randn(shape).to(dtype).double() for name, shape in shapes.items()}
    flags, features = [], dict(weights=f.get("weights", False))
    flags += ["--weights"] * features["weights"]
    lengths = f.get("lengths")
    if lengths is not None:
        lengths = tensors["key_lengths"] = torch.tensor(lengths)
    if "sequences" in f:
        tensors["cu_seqlens_q"], tensors["cu_seqlens_k"] = (torch.tensor(x, dtype=torch.int32) for x in f["sequences"])
    mask, distance = visible(T, S, f.get("causal", False), lengths, B, f.get("window"), f.get("sequences"))
    if "window" in f:
        flags.append("--window={},{}".format(*f["window"]))
    if "mask" in f:
        tensors["mask"] = torch.rand(f["mask"]) > 0.3
        if f["mask"][2] > 1:
            tensors["mask"][..., 1, :] = False
        mask = mask & tensors["mask"]
    if "bias" in f:
        bias = torch.randn(f["bias"])
        bias[bias < -1.5] = -math.inf
        if f["bias"][2] > 1:
            bias[..., 2, :] = -math.inf
        tensors["bias"] = bias.to(dtype).double()
    if "softcap" in f:
        features["softcap"] = f["softcap"]
        flags += ["--softcap", str(f["softcap"])]
    slopes = None
    if "alibi" in f:
        slopes = torch.tensor([2.0 ** (-8 * (h + 1) / H) for h in range(H)], dtype=torch.float64)
        flags.append("--alibi")
    if "slopes" in f:
        slopes = tensors["alibi_slopes"] = torch.rand(H).to(dtype).double()
    if slopes is not None:
        features["alibi"] = slopes[:, None, None] * distance
    if "dropout" in f:
        features["keep"] = kept((B, H, T, S), f["dropout"], f.get("seed", 0))
        flags += ["--dropout", str(f["dropout"])] + (["--seed", str(f["seed"])] if "seed" in f else [])
    if "dlse" in f:
        tensors["dlse"] = torch.randn(B, H, T).to(dtype).double()
    return tensors, flags, mask, f.get("causal", False), features


def error(x, ref):
    if x.shape != ref.shape or torch.isnan(x).any():
        return math.inf
    infinite = torch.isinf(ref)
    if not torch.equal(x[infinite], ref[infinite]):
        return math.inf
    difference = (x - ref)[~infinite].abs()
    largest = ref[~infinite].abs().max().item() if difference.numel() else 0.0
    if difference.numel() == 0:
        return 0.0
    return difference.max().item() / (max(largest, 0.1) if largest > ZERO else 1.0)


def run(attn, variant, tensors, causal, flags, device, dtype, folder):
    source, target = os.path.join(folder, "in.safetensors"), os.path.join(folder, "out.safetensors")
    save_file(tensors, source)
    command = [attn, "run", variant, "--input", source, "--output", target, "--device", device, "--dtype", dtype]
    done = subprocess.run(command + ["--causal"] * causal + flags, capture_output=True, text=True)
    if done.returncode != 0:
        sys.stderr.write(f"error: {' '.join(command)}: {done.stderr.strip()}\n")
        sys.exit(2)
    return load_file(target)


def compare(args, variant, case, f, seed, storage, folder):
    """One case from inputs that `storage` holds (so that every precision starts from the same numbers): rows, printed."""
    torch.manual_seed(seed)
    tensors, flags, mask, causal, features = prepare(f, DTYPES[storage])
    exact = with_gradients(variant, tensors, mask, causal, torch.float64, **features)
    plain = with_gradients(variant, tensors, mask, causal, DTYPES[storage], **features)
    devices = args.devices.split(",")
    if storage == "f32":
        runs = [("cpu", "f64")] * ("cpu" in devices) + [(d, "f32") for d in devices]
    else:
        runs = [(d, storage) for d in devices if d != "cpu"]
    rows = []
    for device, dtype in runs:
        if device == "emulator" and case in SLOW:
            continue
        ours = run(args.attn, variant, tensors, causal, flags, device, dtype, folder)
        if set(ours) != set(exact):
            sys.exit(f"error: {variant} gave {sorted(ours)}, expected {sorted(exact)}")
        for name, ref in exact.items():
            bound = FLOOR[dtype] + (0 if dtype == "f64" else 2 * error(plain[name], ref))
            e = error(ours[name].double(), ref)
            row = dict(variant=variant, case=case, device=device, dtype=dtype, tensor=name, error=e)
            rows.append(row | dict(bound=bound, agrees=e <= bound))
            verdict = "" if e <= bound else "  DISAGREES"
            print(f"{variant:26} {case:32} {device:9} {dtype:5} {name:6} {e:9.1e} {bound:9.1e}{verdict}")
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--attn", default="target/release/attn")
    parser.add_argument("--devices", default="cpu,emulator")
    parser.add_argument("--dtypes", default="f32")
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    devices = args.devices.split(",")
    rows = []
    print(f"{'variant':26} {'case':32} {'device':9} {'dtype':5} {'tensor':6} {'error':>9} {'bound':>9}")
    with tempfile.TemporaryDirectory() as folder:
        for variant in args.variants.split(","):
            cases = {name: dict(sizes=c[:7], causal=c[7]) | ({"lengths": c[8]} if c[8] else {}) for name, c in CASES.items()}
            for seed, (case, f) in enumerate((cases | (FEATURES if variant == "softmax-attention" else {})).items()):
                for storage in args.dtypes.split(","):
                    rows += compare(args, variant, case, f, seed, storage, folder)
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"rows": rows}, file, indent=1)
    bad = sum(not row["agrees"] for row in rows)
    print(f"{len(rows)} tensors compared, {bad} disagree")
    sys.exit(1 if bad or not rows else 0)


if __name__ == "__main__":
    main()
