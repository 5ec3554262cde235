"""Times of `attn bench` on the CPU beside PyTorch's, in one alternating run.

    pip install torch==2.11.0 numpy safetensors
    cargo build --release
    python benches/peers/compare_torch.py [--attn target/release/attn] [--threads N] [--lengths LIST] [--json FILE]

Softmax attention against torch.nn.functional.scaled_dot_product_attention, linear attention (elu + 1) against plain
products, and where it is causal against a chunked form with the chunk that suits PyTorch best. Batch 1, 8 heads of
size 64, float32, the same number of threads. Each case is measured in rounds that alternate between the two, each warmed
and each a median of repeated runs; the table shows the median over the rounds, and as `best` the ratio of the fastest
runs. A ratio below 1 means that attn is faster.
On a machine with other work the ratios flatter attn: PyTorch's threads wait for each other at every step.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import torch

BATCH, HEADS, DIM = 1, 8, 64


def softmax_attention(q, k, v, causal):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)


def phi(x):
    return torch.nn.functional.elu(x) + 1


def linear_full(q, k, v):
    q, k = phi(q), phi(k)
    return q @ (k.transpose(-1, -2) @ v) / (q @ k.sum(-2)[..., None])


def linear_causal(q, k, v, chunk):
    """Within a chunk as masked products; from chunk to chunk through the running sum of k vᵀ and of k."""
    B, H, T, D = q.shape
    q, k, v = (x.view(B, H, T // chunk, chunk, D) for x in (phi(q), phi(k), v))
    products, sums = k.transpose(-1, -2) @ v, k.sum(-2)
    before = products.cumsum(2) - products
    sums_before = (sums.cumsum(2) - sums)[..., None]
    weights = (q @ k.transpose(-1, -2)).tril()
    out = (weights @ v + q @ before) / (weights.sum(-1, keepdim=True) + q @ sums_before)
    return out.reshape(B, H, T, D)


def theirs(variant, causal, chunk=None):
    if variant == "softmax-attention":
        return lambda q, k, v: softmax_attention(q, k, v, causal)
    return (lambda q, k, v: linear_causal(q, k, v, chunk)) if causal else linear_full


def time_torch(function, length, direction, seconds):
    """Median and least milliseconds of repeated runs after two that warm up."""
    torch.manual_seed(0)
    tensors = [torch.randn(BATCH, HEADS, length, DIM) for _ in range(4)]
    q, k, v, dout = tensors

    def once():
        if direction == "forward":
            with torch.no_grad():
                function(q, k, v)
        else:
            torch.autograd.grad(function(q, k, v), (q, k, v), dout)

    for x in (q, k, v):
        x.requires_grad_(direction != "forward")
    once(), once()
    samples, start = [], time.perf_counter()
    while len(samples) < 3 or (time.perf_counter() - start < seconds and len(samples) < 200):
        before = time.perf_counter()
        once()
        samples.append((time.perf_counter() - before) * 1e3)
    return statistics.median(samples), min(samples)


def time_attn(attn, variant, length, direction, causal, threads, folder):
    path = os.path.join(folder, "bench.json")
    command = [attn, "bench", "--device", "cpu", "--threads", str(threads), "--variants", variant]
    command += ["--lengths", str(length), "--batch", str(BATCH), "--heads", str(HEADS), "--head-dim", str(DIM)]
    command += ["--direction", direction, "--json", path] + ["--causal"] * causal
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.stderr.write(f"error: {' '.join(command)}: {done.stderr.strip()}\n")
        sys.exit(2)
    with open(path) as file:
        (row,) = json.load(file)["rows"]
    return row["median_ms"], row["min_ms"]


def best_chunk(length, direction):
    chunks = [c for c in (32, 64, 128, 256) if length % c == 0]
    if not chunks:
        sys.exit(f"error: --lengths {length}: the chunked form needs a multiple of 32")
    return min(chunks, key=lambda c: time_torch(theirs("linear-attention", True, c), length, direction, 0.2)[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--attn", default="target/release/attn")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--lengths", default="256,1024,4096")
    parser.add_argument("--variants", default="softmax-attention,linear-attention")
    parser.add_argument("--directions", default="forward,both")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.5, help="for each of PyTorch's measurements")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    print(f"PyTorch {torch.__version__}, {args.threads} threads, f32, B{BATCH} H{HEADS} D{DIM}, {args.rounds} rounds")
    print(f"{'variant':18} {'mask':7} {'direction':9} {'T':>6} {'attn ms':>9} {'torch ms':>9} {'ratio':>6} {'best':>6}  by round")
    with tempfile.TemporaryDirectory() as folder:
        for variant in args.variants.split(","):
            for causal in (False, True):
                for direction in args.directions.split(","):
                    for length in map(int, args.lengths.split(",")):
                        chunk = best_chunk(length, direction) if causal and variant == "linear-attention" else None
                        function, ours, peer = theirs(variant, causal, chunk), [], []
                        for _ in range(args.rounds):
                            peer.append(time_torch(function, length, direction, args.seconds))
                            ours.append(time_attn(args.attn, variant, length, direction, causal, args.threads, folder))
                        attn_ms, torch_ms = (statistics.median(m for m, _ in side) for side in (ours, peer))
                        ratios = [a / b for (a, _), (b, _) in zip(ours, peer)]
                        ratio = statistics.median(ratios)
                        best = min(least for _, least in ours) / min(least for _, least in peer)
                        rows.append(dict(variant=variant, causal=causal, direction=direction, length=length,
                                         threads=args.threads, attn_ms=attn_ms, torch_ms=torch_ms, ratio=ratio,
                                         best=best, ratios=ratios, chunk=chunk))
                        mask, by_round = "causal" if causal else "full", " ".join(f"{r:.2f}" for r in ratios)
                        print(f"{variant:18} {mask:7} {direction:9} {length:6} {attn_ms:9.3f} {torch_ms:9.3f} "
                              f"{ratio:6.2f} {best:6.2f}  {by_round}", flush=True)
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"torch": torch.__version__, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
