"""PyTorch's side of `attn bench --peer torch`, which starts it, asks it case by case, and alternates with its own runs.

Standard input holds JSON lines. The first is the setting:
    {"device": "cpu", "threads": 2, "dtype": "f32", "tf32": false, "batch": 1, "heads": 8, "head_dim": 64,
     "causal": false, "direction": "forward", "features": {"kv_heads": 8, "window": null, …},
     "recurrence": {"hidden": 512, "inputs": 512, "layers": 1, "bidirectional": false}}
answered by {"version": "2.11.0", "backends": {"softmax-attention": ["flash", …], …}}, or {"error": why} where PyTorch
or its device is missing. Then each
    {"variant": "softmax-attention", "backend": "flash", "length": 1024, "seconds": 0.1}
is answered by {"samples": [milliseconds, …], "peak_bytes": …} or, where PyTorch refuses the case, {"refused": why}.
It ends where its input ends.
"""

import json
import os
import sys
import time
import warnings

MOST_SAMPLES = 200
BACKENDS = {
    "softmax-attention": {
        "cpu": ["flash", "math", "flex"],
        "cuda": ["flash", "efficient", "cudnn", "math", "flex"],
    },
    "linear-attention": {"cpu": ["plain"], "cuda": ["plain"]},
    "mean-similarity-attention": {"cpu": ["plain"], "cuda": ["plain"]},
    "gru": {"cpu": ["nn"], "cuda": ["nn"]},
    "rnn": {"cpu": ["nn"], "cuda": ["nn"]},
}
RECURRENCES = ("gru", "rnn")


class Refused(Exception):
    """The case cannot be run, for the reason given."""


def say(answer):
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


try:
    import torch
except Exception as e:  # A broken installation raises other things than ImportError.
    sys.stdin.readline()
    say({"error": f"cannot import torch: {e}"})
    sys.exit(0)


DTYPES = {"f64": torch.float64, "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


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


def mean_similarity(q, k, v, causal):
    scores = q.mean(-1)[..., :, None] * k.mean(-1)[..., None, :]
    if causal:
        T = scores.shape[-1]
        hidden = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(hidden, float("-inf"))
    return scores.softmax(-1) @ v


class Peer:
    def __init__(self, setting):
        self.setting = setting
        self.kind = setting["device"].split(":")[0]
        self.device = torch.device(setting["device"])
        self.dtype = DTYPES[setting["dtype"]]
        self.causal, self.direction = setting["causal"], setting["direction"]
        self.features = setting["features"]
        self.grouped = self.features["kv_heads"] != setting["heads"]
        self.chunks, self.masks, self.compiled = {}, {}, None
        self.functions, self.slow = {}, set()
        if self.kind == "cpu":
            torch.set_num_threads(setting["threads"])
        else:
            torch.cuda.set_device(self.device)
            torch.backends.cuda.matmul.allow_tf32 = setting["tf32"]
            # Several times the largest L2: what is timed finds nothing of itself there, as in `attn bench`.
            self.flush = torch.empty(2, 1 << 26, device=self.device)

    def softmax_attention(self, backend, length):
        if backend == "flex":
            return self.flex(length)
        from torch.nn.attention import SDPBackend, sdpa_kernel

        forced = getattr(SDPBackend, {"flash": "FLASH_ATTENTION", "efficient": "EFFICIENT_ATTENTION",
                                      "cudnn": "CUDNN_ATTENTION", "math": "MATH"}[backend])

        if self.features["softcap"]:
            raise Refused("scaled_dot_product_attention has no soft-capping")
        # Whatever is not causality alone it takes as one tensor only.
        mask = self.whole_mask(length)
        options = {"attn_mask": mask} if mask is not None else {"is_causal": self.causal}
        if self.features["dropout"]:
            options["dropout_p"] = self.features["dropout"]
        if self.grouped:
            options["enable_gqa"] = True

        def run(q, k, v):
            with sdpa_kernel(forced):
                return torch.nn.functional.scaled_dot_product_attention(q, k, v, **options)

        return run

    def extras(self, length):
        """What the features take: key lengths, mask and bias, ALiBi's slopes; src/cli/bench/features.rs has the same."""
        f, batch, heads = self.features, self.setting["batch"], self.setting["heads"]
        torch.manual_seed(1)
        extras = {}
        if f["ragged"]:
            lengths = [length - length * (2 * b + 1) // (4 * batch) for b in range(batch)]
            extras["lengths"] = torch.tensor(lengths, device=self.device)
        if f["mask"]:
            seen = torch.rand(length, length, device=self.device) >= 0.25
            extras["mask"] = seen | torch.eye(length, dtype=torch.bool, device=self.device)
        if f["bias"]:
            extras["bias"] = torch.randn(length, length, device=self.device).to(self.dtype)
        if f["alibi"]:
            extras["slopes"] = torch.tensor([2.0 ** (-8 * (h + 1) / heads) for h in range(heads)], device=self.device)
        return extras

    def whole_mask(self, length):
        """(B or 1, H or 1, T, T): booleans where keys are only hidden, otherwise what is added; None for causality alone."""
        f, extras = self.features, self.extras(length)
        if not extras and f["window"] is None:
            return None
        t = torch.arange(length, device=self.device)
        distance = t[None, :] - t[:, None]
        seen = torch.ones(1, 1, length, length, dtype=torch.bool, device=self.device)
        if self.causal:
            seen = seen & (distance <= 0)
        if f["window"] is not None:
            seen = seen & (distance.abs() <= f["window"])
        if "mask" in extras:
            seen = seen & extras["mask"]
        if "lengths" in extras:
            seen = seen & (t < extras["lengths"][:, None, None, None])
        if "bias" not in extras and "slopes" not in extras:
            return seen
        added = extras["bias"][None, None] if "bias" in extras else torch.zeros((), device=self.device)
        if "slopes" in extras:
            added = added - extras["slopes"][:, None, None] * distance.abs()
        return torch.where(seen, added, float("-inf")).to(self.dtype)

    def flex(self, length):
        try:
            from torch.nn.attention.flex_attention import create_block_mask, flex_attention
        except ImportError as e:
            raise Refused(f"no FlexAttention in this PyTorch: {e}") from e
        f, extras = self.features, self.extras(length)
        if f["dropout"]:
            raise Refused("FlexAttention has no dropout")
        hides = self.causal or f["window"] is not None or f["mask"] or f["ragged"]
        if hides and length not in self.masks:
            causal, window, seen_pairs, lengths = self.causal, f["window"], extras.get("mask"), extras.get("lengths")

            def visible(b, h, query, key):
                seen = query >= key if causal else key >= 0
                if window is not None:
                    seen = seen & (query - key <= window) & (key - query <= window)
                if seen_pairs is not None:
                    seen = seen & seen_pairs[query, key]
                return seen if lengths is None else seen & (key < lengths[b])

            of_batch = self.setting["batch"] if f["ragged"] else None
            self.masks[length] = create_block_mask(visible, of_batch, None, length, length, device=self.setting["device"])
        self.compiled = self.compiled or torch.compile(flex_attention, dynamic=False)
        mask = self.masks.get(length)
        cap, bias, slopes = f["softcap"], extras.get("bias"), extras.get("slopes")

        def changed(score, b, h, query, key):
            if cap is not None:
                score = cap * torch.tanh(score / cap)
            if slopes is not None:
                score = score - slopes[h] * (query - key).abs()
            return score if bias is None else score + bias[query, key]

        options = {"enable_gqa": True} if self.grouped else {}
        if cap is not None or bias is not None or slopes is not None:
            options["score_mod"] = changed
        return lambda q, k, v: self.compiled(q, k, v, block_mask=mask, **options)

    def linear_attention(self, length):
        if not self.causal:
            return linear_full
        # The chunk that suits PyTorch best here.
        if length not in self.chunks:
            chunks = [c for c in (32, 64, 128, 256) if length % c == 0]
            if not chunks:
                raise Refused("the chunked form needs a length that is a multiple of 32")

            def least(chunk):
                return min(self.sample(lambda q, k, v: linear_causal(q, k, v, chunk), length, 0.1)[0])

            self.chunks[length] = min(chunks, key=least)
        return lambda q, k, v: linear_causal(q, k, v, self.chunks[length])

    def recurrence(self, variant):
        """nn.GRU or nn.RNN, batch first: cuDNN's on a GPU. Gradients are those of x and of all parameters."""
        sizes = self.setting["recurrence"]
        torch.manual_seed(0)
        layer = {"gru": torch.nn.GRU, "rnn": torch.nn.RNN}[variant]
        module = layer(sizes["inputs"], sizes["hidden"], sizes["layers"], batch_first=True,
                       bidirectional=sizes["bidirectional"], device=self.device, dtype=self.dtype)
        return lambda x, *parameters: module(x)[0], list(module.parameters())

    def function(self, variant, backend, length):
        if variant in RECURRENCES:
            return self.recurrence(variant)
        if self.grouped and variant != "softmax-attention":
            raise Refused("the plain forms here have as many heads of keys as of queries")
        if backend in ("math", "plain") and variant != "linear-attention":
            self.refuse_what_does_not_fit(length)
        if variant == "softmax-attention":
            return self.softmax_attention(backend, length)
        if variant == "linear-attention":
            return self.linear_attention(length)
        return lambda q, k, v: mean_similarity(q, k, v, self.causal)

    def refuse_what_does_not_fit(self, length):
        """T×T matrices that the host's memory cannot hold would end in the process being killed; a GPU says so itself."""
        if self.kind != "cpu" or not hasattr(os, "sysconf"):
            return
        # Scores, weights and the mask's result; in backward the gradients of two of them too. 16 bits are widened.
        matrices = 3 if self.direction == "forward" else 5
        bytes_each = max(4, torch.empty(0, dtype=self.dtype).element_size())
        needed = matrices * bytes_each * self.setting["batch"] * self.setting["heads"] * length * length
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if needed > free:
            raise Refused(f"its T×T matrices need about {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free")

    def time(self, work):
        """Milliseconds, and what `work` gave."""
        if self.kind == "cpu":
            start = time.perf_counter()
            result = work()
            return (time.perf_counter() - start) * 1e3, result
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flush[1].copy_(self.flush[0])
        start.record()
        result = work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end), result

    def sample(self, function, length, seconds):
        """The samples of about so many seconds, at least one, and the most device memory in use meanwhile."""
        s = self.setting
        torch.manual_seed(0)

        def random(*shape):
            return torch.randn(shape, device=self.device).to(self.dtype)

        if isinstance(function, tuple):
            function, parameters = function
            sizes = s["recurrence"]
            inputs = [random(s["batch"], length, sizes["inputs"]), *parameters]
            dout = random(s["batch"], length, (1 + sizes["bidirectional"]) * sizes["hidden"])
        else:
            of_q, of_k = ((s["batch"], heads, length, s["head_dim"]) for heads in (s["heads"], self.features["kv_heads"]))
            *inputs, dout = (random(*shape) for shape in (of_q, of_k, of_k, of_q))
        forward_only = self.direction == "forward"
        for x in inputs:
            x.requires_grad_(not forward_only)
        if self.kind == "cuda":
            torch.cuda.reset_peak_memory_stats()

        def once():
            if forward_only:
                with torch.no_grad():
                    return self.time(lambda: function(*inputs))[0]
            if self.direction == "both":
                return self.time(lambda: torch.autograd.grad(function(*inputs), inputs, dout))[0]
            out = function(*inputs)
            return self.time(lambda: torch.autograd.grad(out, inputs, dout))[0]

        # Compiles, chooses algorithms, touches pages; in later rounds only where it costs little.
        if function not in self.slow:
            once()
        samples, start = [], time.perf_counter()
        while not samples or (len(samples) < MOST_SAMPLES and time.perf_counter() - start < seconds):
            samples.append(once())
        if samples[0] > seconds * 1e3:
            self.slow.add(function)
        # What the function itself holds; the buffer that empties the cache is no part of it.
        peak = None if self.kind == "cpu" else torch.cuda.max_memory_allocated() - self.flush.nbytes
        return samples, peak

    def answer(self, request):
        case = (request["variant"], request["backend"], request["length"])
        try:
            with warnings.catch_warnings(record=True) as remarks:
                warnings.simplefilter("always")
                if case not in self.functions:
                    self.functions[case] = self.function(*case)
                samples, peak = self.sample(self.functions[case], request["length"], request["seconds"])
            return {"samples": samples, "peak_bytes": peak}
        # A backend that does not take a case raises RuntimeError, and says why in warnings; the compiler of
        # FlexAttention has errors of its own.
        except Exception as e:
            reasons = [str(w.message) for w in remarks if "because" in str(w.message)]
            lines = [line.strip() for line in reasons + str(e).splitlines() if line.strip()]
            return {"refused": lines[0][:300] if lines else type(e).__name__}
        finally:
            if self.kind == "cuda":
                torch.cuda.empty_cache()


def main():
    setting = json.loads(sys.stdin.readline())
    if setting["device"] != "cpu" and not torch.cuda.is_available():
        say({"error": f"PyTorch {torch.__version__} there finds no CUDA device"})
        return
    peer = Peer(setting)
    backends = {variant: by_kind[peer.kind] for variant, by_kind in BACKENDS.items()}
    say({"version": torch.__version__, "backends": backends})
    for line in sys.stdin:
        say(peer.answer(json.loads(line)))


if __name__ == "__main__":
    main()
