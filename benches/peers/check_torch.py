"""Agreement of `attn run` with PyTorch, in float64 and float32.

    pip install torch==2.11.0 numpy safetensors
    cargo build --release
    python benches/peers/check_torch.py [--attn target/release/attn] [--devices cpu,emulator] [--variants LIST] [--json FILE]

The reference is written from the formulas, with an explicit mask, in PyTorch's float64; its gradients are autograd's.
The error of a tensor is max|x - ref| / max(max|ref|, 0.1), and max|x - ref| for gradients that are zero by identity
(dq and dk where there is one key, or in linear attention one feature). float64 must agree to 1e-10. float32 may be off by twice
what the same PyTorch code is off by in float32, plus 2e-6. Prints a table; exits 1 where one disagrees, 2 on an error.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile

import torch
from safetensors.torch import load_file, save_file

VARIANTS = ["softmax-attention", "linear-attention", "mean-similarity-attention"]
# What float64 leaves of a gradient that is zero by identity stays below this.
ZERO = 1e-12
FLOOR = {"f64": 1e-10, "f32": 2e-6}

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
# The emulator executes every thread: no need to make it run long.
SLOW = {"long"}


def visible(T, S, causal, lengths, batch):
    """(B,1,T,S): s <= t + S - T where causal, and s < key_lengths[b]."""
    t, s = torch.arange(T)[:, None], torch.arange(S)[None, :]
    mask = (s <= t + S - T) if causal else torch.ones(T, S, dtype=torch.bool)
    mask = mask.expand(batch, 1, T, S)
    if lengths is not None:
        mask = mask & (torch.arange(S) < lengths[:, None])[:, None, None, :]
    return mask


def reference(variant, q, k, v, mask, causal):
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
    seen = mask.any(-1, keepdim=True)
    # A row of -inf would make NaN, also in its gradient: let it be zeros, and then discard it.
    scores = scores.masked_fill(~mask & seen, -math.inf).masked_fill(~seen, 0.0)
    out = (torch.softmax(scores, -1) * seen) @ v
    if variant != "softmax-attention":
        return {"out": out}
    lse = torch.logsumexp(scores, -1).masked_fill(~seen.squeeze(-1).expand(scores.shape[:-1]), -math.inf)
    return {"out": out, "lse": lse}


def with_gradients(variant, tensors, mask, causal, dtype):
    """What `attn run` gives, computed by PyTorch in `dtype`."""
    q, k, v = (tensors[n].to(dtype).requires_grad_() for n in "qkv")
    results = reference(variant, q, k, v, mask, causal)
    gradients = torch.autograd.grad(results["out"], (q, k, v), tensors["dout"].to(dtype), allow_unused=True)
    results |= {f"d{n}": torch.zeros_like(x) if g is None else g for n, g, x in zip("qkv", gradients, (q, k, v))}
    return {name: x.detach().double() for name, x in results.items()}


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


def run(attn, variant, tensors, causal, device, dtype, folder):
    source, target = os.path.join(folder, "in.safetensors"), os.path.join(folder, "out.safetensors")
    save_file(tensors, source)
    command = [attn, "run", variant, "--input", source, "--output", target, "--device", device, "--dtype", dtype]
    done = subprocess.run(command + ["--causal"] * causal, capture_output=True, text=True)
    if done.returncode != 0:
        sys.stderr.write(f"error: {' '.join(command)}: {done.stderr.strip()}\n")
        sys.exit(2)
    return load_file(target)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--attn", default="target/release/attn")
    parser.add_argument("--devices", default="cpu,emulator")
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    devices = args.devices.split(",")
    runs = [("cpu", "f64")] * ("cpu" in devices) + [(d, "f32") for d in devices]
    rows = []
    print(f"{'variant':26} {'case':32} {'device':9} {'dtype':5} {'tensor':6} {'error':>9} {'bound':>9}")
    with tempfile.TemporaryDirectory() as folder:
        for variant in args.variants.split(","):
            for seed, (case, (B, H, Hk, T, S, Dk, Dv, causal, lengths)) in enumerate(CASES.items()):
                torch.manual_seed(seed)
                shapes = {"q": (B, H, T, Dk), "k": (B, Hk, S, Dk), "v": (B, Hk, S, Dv), "dout": (B, H, T, Dv)}
                # Representable in float32, so that every precision starts from the same numbers.
                tensors = {name: torch.randn(shape).double() for name, shape in shapes.items()}
                given = None
                if lengths is not None:
                    given = tensors["key_lengths"] = torch.tensor(lengths)
                mask = visible(T, S, causal, given, B)
                exact = with_gradients(variant, tensors, mask, causal, torch.float64)
                plain = with_gradients(variant, tensors, mask, causal, torch.float32)
                for device, dtype in runs:
                    if device == "emulator" and case in SLOW:
                        continue
                    ours = run(args.attn, variant, tensors, causal, device, dtype, folder)
                    if set(ours) != set(exact):
                        sys.exit(f"error: {variant} gave {sorted(ours)}, expected {sorted(exact)}")
                    for name, ref in exact.items():
                        bound = FLOOR[dtype] + (2 * error(plain[name], ref) if dtype == "f32" else 0)
                        e = error(ours[name].double(), ref)
                        row = dict(variant=variant, case=case, device=device, dtype=dtype, tensor=name, error=e)
                        rows.append(row | dict(bound=bound, agrees=e <= bound))
                        verdict = "" if e <= bound else "  DISAGREES"
                        print(f"{variant:26} {case:32} {device:9} {dtype:5} {name:6} {e:9.1e} {bound:9.1e}{verdict}")
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"rows": rows}, file, indent=1)
    bad = sum(not row["agrees"] for row in rows)
    print(f"{len(rows)} tensors compared, {bad} disagree")
    sys.exit(1 if bad or not rows else 0)


if __name__ == "__main__":
    main()
