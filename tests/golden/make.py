"""Makes the golden values beside this file: PyTorch in float64, forward and gradients.

    pip install torch==2.11.0 safetensors numpy && python tests/golden/make.py

Each NAME.safetensors holds an op's inputs and `dout` under the names of `attn run`, what PyTorch gave as
`expect.` + name, and in its metadata the op and its flags. tests/golden.rs runs them on the CPU in f64.
"""
import math
import pathlib

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
HERE = pathlib.Path(__file__).parent


def save(name, op, options, inputs, compute, also=None):
    """Runs compute(**inputs) -> {output name: tensor}; the first output takes `dout`, and `also` its own gradient."""
    leaves = {k: v.clone().requires_grad_(v.is_floating_point()) for k, v in inputs.items()}
    outputs = compute(**leaves)
    out = next(iter(outputs.values()))
    given = {"d" + next(iter(outputs)): torch.randn_like(out)}
    if also:
        given["d" + also] = torch.randn_like(outputs[also])
    torch.autograd.backward([outputs[k[1:]] for k in given], list(given.values()))
    tensors = {k: v.detach() for k, v in leaves.items()} | given
    tensors |= {"expect." + k: v.detach() for k, v in outputs.items()}
    tensors |= {"expect.d" + k: v.grad for k, v in leaves.items() if v.is_floating_point()}
    tensors = {k: v.contiguous() for k, v in tensors.items()}
    save_file(tensors, HERE / f"{name}.safetensors", metadata={"op": op, "options": options})


def visible(q, k, causal, lengths):
    """(B,1,T,S): bottom-right causal alignment by the padded S; queries are never masked."""
    batch, t, s = q.shape[0], q.shape[2], k.shape[2]
    mask = torch.ones(batch, 1, t, s, dtype=torch.bool)
    if causal:
        mask &= torch.arange(s)[None, :] <= torch.arange(t)[:, None] + s - t
    if lengths is not None:
        mask &= torch.arange(s) < lengths[:, None, None, None]
    return mask


def grouped(q, k, v):
    group = q.shape[1] // k.shape[1]
    return k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)


def weighted(scores, mask, v):
    scores = scores.masked_fill(~mask, -math.inf)
    lse = scores.logsumexp(-1)
    weights = torch.where(mask, (scores - lse.masked_fill(lse.isinf(), 0)[..., None]).exp(), 0.0)
    return weights @ v, lse


def softmax_attention(causal, scale=None):
    def compute(q, k, v, key_lengths=None):
        mask = visible(q, k, causal, key_lengths)
        kk, vv = grouped(q, k, v)
        out, lse = weighted(q @ kk.mT * (scale or q.shape[-1] ** -0.5), mask, vv)
        return {"out": out, "lse": lse}
    return compute


def mean_similarity(causal):
    def compute(q, k, v, key_lengths=None):
        mask = visible(q, k, causal, key_lengths)
        kk, vv = grouped(q, k, v)
        return {"out": weighted(q.mean(-1)[..., :, None] * kk.mean(-1)[..., None, :], mask, vv)[0]}
    return compute


def linear_attention(causal, feature):
    def compute(q, k, v, key_lengths=None):
        mask = visible(q, k, causal, key_lengths)
        kk, vv = grouped(q, k, v)
        weights = torch.where(mask, feature(q) @ feature(kk).mT, 0.0)
        total = weights.sum(-1, keepdim=True)
        return {"out": torch.where(total != 0, weights / torch.where(total != 0, total, 1.0), 0.0) @ vv}
    return compute


def qkv(b, h, hk, t, s, dk, dv, lengths=None):
    tensors = {"q": torch.randn(b, h, t, dk), "k": torch.randn(b, hk, s, dk), "v": torch.randn(b, hk, s, dv)}
    return tensors if lengths is None else tensors | {"key_lengths": torch.tensor(lengths)}


elu1 = lambda x: F.elu(x) + 1
ragged = dict(b=3, h=4, hk=2, t=5, s=9, dk=37, dv=2, lengths=[9, 0, 4])
tall = dict(b=2, h=2, hk=2, t=9, s=4, dk=3, dv=3)
for name, op, options, make in [
    ("softmax", "softmax-attention", "", lambda causal: softmax_attention(causal)),
    ("mean-similarity", "mean-similarity-attention", "", mean_similarity),
    ("linear-elu1", "linear-attention", "--feature-map elu1", lambda causal: linear_attention(causal, elu1)),
    ("linear-relu", "linear-attention", "--feature-map relu", lambda causal: linear_attention(causal, F.relu)),
]:
    save(f"{name}-ragged", op, options, qkv(**ragged), make(False))
    save(f"{name}-ragged-causal", op, (options + " --causal").strip(), qkv(**ragged), make(True))
    save(f"{name}-causal-tall", op, (options + " --causal").strip(), qkv(**tall), make(True))
save("softmax-scale", "softmax-attention", "--scale 0.3", qkv(1, 1, 1, 4, 1, 1, 1), softmax_attention(False, 0.3))


def self_attention(x, w_q, w_k, w_v):
    q, k, v = x @ w_q, x @ w_k, x @ w_v
    return {"out": F.scaled_dot_product_attention(q, k, v)}


save("self-attention", "self-attention", "", {
    "x": torch.randn(1, 15, 20), "w_q": torch.randn(20, 37), "w_k": torch.randn(20, 37), "w_v": torch.randn(20, 2),
}, self_attention)
for axis in (0, 1):
    save(f"softmax-axis{axis}", "softmax", f"--axis {axis}", {"x": torch.randn(15, 5)},
         lambda x: {"out": x.softmax(axis)})


def multi_head(heads):
    def compute(query, key, value, key_padding_mask=None, attn_mask=None, **weights):
        width = query.shape[-1]
        packed = "in_proj_weight" in weights
        out, _ = F.multi_head_attention_forward(
            query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1), width, heads,
            weights.get("in_proj_weight"), weights.get("in_proj_bias"), None, None, False, 0.0,
            weights["out_proj.weight"], weights.get("out_proj.bias"), key_padding_mask=key_padding_mask, attn_mask=attn_mask,
            need_weights=False, use_separate_proj_weight=not packed, q_proj_weight=weights.get("q_proj_weight"),
            k_proj_weight=weights.get("k_proj_weight"), v_proj_weight=weights.get("v_proj_weight"))
        return {"out": out.transpose(0, 1)}
    return compute


padding = torch.tensor([[False] * 7, [False] * 3 + [True] * 4])
save("multi-head-packed", "multi-head-attention", "--num-heads 3", {
    "query": torch.randn(2, 5, 12), "key": torch.randn(2, 7, 12), "value": torch.randn(2, 7, 12),
    "in_proj_weight": torch.randn(36, 12), "in_proj_bias": torch.randn(36),
    "out_proj.weight": torch.randn(12, 12), "out_proj.bias": torch.randn(12), "key_padding_mask": padding,
}, multi_head(3))
save("multi-head-apart", "multi-head-attention", "--num-heads 2", {
    "query": torch.randn(2, 5, 8), "key": torch.randn(2, 7, 3), "value": torch.randn(2, 7, 6),
    "q_proj_weight": torch.randn(8, 8), "k_proj_weight": torch.randn(8, 3), "v_proj_weight": torch.randn(8, 6),
    "in_proj_bias": torch.randn(24), "out_proj.weight": torch.randn(8, 8), "out_proj.bias": torch.randn(8),
}, multi_head(2))


def featured(window=None, causal=False, softcap=None, slopes=None, sequences=None):
    """Softmax attention with what changes scores and hides keys; a bias of -inf hides one too."""
    def compute(q, k, v, mask=None, bias=None, key_lengths=None, **others):
        t, s = torch.arange(q.shape[2])[:, None], torch.arange(k.shape[2])
        diagonal, seen = t + k.shape[2] - q.shape[2], torch.ones(q.shape[2], k.shape[2], dtype=torch.bool)
        if sequences:
            of_q, of_k = map(torch.tensor, sequences)
            n = torch.searchsorted(of_q, t, right=True) - 1
            diagonal, seen = t - of_q[n + 1] + of_k[n + 1], (of_k[n] <= s) & (s < of_k[n + 1])
        seen = seen & (s <= diagonal) if causal else seen
        if window:
            seen = seen & (s >= diagonal - window[0]) & (s <= diagonal + window[1])
        seen = seen.expand(q.shape[0], q.shape[1], *seen.shape)
        if key_lengths is not None:
            seen = seen & (s < key_lengths[:, None, None, None])
        kk, vv = grouped(q, k, v)
        scores = q @ kk.mT * q.shape[-1] ** -0.5
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        if slopes is not None:
            scores = scores - slopes[:, None, None] * (diagonal - s).abs()
        if bias is not None:
            scores, seen = scores + bias, seen & (bias > -math.inf)
        if mask is not None:
            seen = seen & mask
        hidden = ~seen.any(-1, keepdim=True)
        # A row of nothing but -inf has a NaN for a gradient: let it be zeros, and discard it.
        scores = scores.masked_fill(~seen, -math.inf).masked_fill(hidden, 0.0)
        lse = scores.logsumexp(-1).masked_fill(hidden.squeeze(-1), -math.inf)
        weights = scores.softmax(-1).masked_fill(hidden, 0.0)
        return {"out": weights @ vv, "lse": lse, "weights": weights}
    return compute


standard = lambda heads: 2.0 ** (-8.0 * torch.arange(1, heads + 1) / heads)
some = lambda *shape: torch.rand(shape) > 0.3
few = torch.randn(1, 2, 5, 9)
few[few < -1] = -math.inf
few[..., 2, :] = -math.inf
nothing = some(2, 1, 5, 9)
nothing[:, :, 1] = False
packed = ([0, 3, 3, 7], [0, 4, 6, 9])
for name, flags, inputs, options in [
    ("window", "--window 3,1", qkv(2, 2, 1, 7, 9, 3, 2), dict(window=(3, 1))),
    ("softcap", "--softcap 0.8", qkv(2, 2, 1, 5, 9, 3, 2), dict(softcap=0.8)),
    ("alibi", "--alibi --causal", qkv(1, 4, 2, 5, 9, 3, 2), dict(slopes=standard(4), causal=True)),
    ("bias", "", qkv(2, 2, 1, 5, 9, 3, 2) | {"bias": few}, {}),
    ("mask", "", qkv(2, 2, 2, 5, 9, 3, 2) | {"mask": nothing}, {}),
    ("packed", "--causal", qkv(1, 2, 1, 7, 9, 3, 2)
     | dict(zip(("cu_seqlens_q", "cu_seqlens_k"), map(torch.tensor, packed))), dict(sequences=packed, causal=True)),
    ("features", "--causal --window 4,0 --softcap 2 --alibi", qkv(2, 2, 1, 5, 9, 3, 2, lengths=[9, 7])
     | {"bias": torch.randn(2, 1, 1, 9), "mask": some(1, 2, 5, 9)},
     dict(causal=True, window=(4, 0), softcap=2.0, slopes=standard(2))),
]:
    save(f"softmax-{name}", "softmax-attention", (flags + " --weights").strip(), inputs, featured(**options))
# Every query keeps a key: PyTorch gives NaN where none is left, we give zeros.
gaps = torch.tensor([[False] * 6, [False, True, False, False, True, False]])
later = torch.ones(5, 6, dtype=torch.bool).triu(2)
for name, attn_mask in [("booleans", later), ("floats", torch.randn(4, 5, 6))]:
    save(f"multi-head-{name}", "multi-head-attention", "--num-heads 2", {
        "query": torch.randn(2, 5, 4), "key": torch.randn(2, 6, 4), "value": torch.randn(2, 6, 4),
        "in_proj_weight": torch.randn(12, 4), "out_proj.weight": torch.randn(4, 4), "attn_mask": attn_mask,
        "key_padding_mask": gaps,
    }, multi_head(2))


def head(ignore):
    def losses(logits, targets):
        each = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=ignore, reduction="none")
        return {"out": each.sum()[None] / (targets != ignore).sum(), "token_losses": each.view(targets.shape)}
    return losses


# 300 classes: several tiles of them. One target in five does not count.
targets = torch.randint(0, 300, (3, 7)).where(torch.arange(21).view(3, 7) % 5 != 2, -1)
save("cross-entropy", "cross-entropy", "--ignore-index -1", {"logits": torch.randn(3, 7, 300), "targets": targets}, head(-1))
save("linear-cross-entropy", "linear-cross-entropy", "--ignore-index -1", {
    "hidden": torch.randn(3, 7, 5), "weight": torch.randn(300, 5), "targets": targets,
}, lambda hidden, weight, targets: head(-1)(hidden @ weight.T, targets))


def recurrent(kind, hidden, layers, both_ways, bias=True, **options):
    """Parameters by nn.GRU's or nn.RNN's names, and what computes from them; sequences are packed by their lengths."""
    def compute(x, lengths=None, h_0=None, **parameters):
        module = kind(x.shape[-1], hidden, layers, bias=bias, batch_first=True, bidirectional=both_ways, **options)
        call = lambda x: torch.func.functional_call(module, parameters, (x, h_0))
        if lengths is None:
            out, h_n = call(x)
        else:
            pack, pad = torch.nn.utils.rnn.pack_padded_sequence, torch.nn.utils.rnn.pad_packed_sequence
            out, h_n = call(pack(x, lengths, batch_first=True, enforce_sorted=False))
            out, _ = pad(out, batch_first=True, total_length=x.shape[1])
        return {"out": out, "h_n": h_n}
    return compute


def parameters(kind, width, hidden, layers, both_ways, bias=True):
    module = kind(width, hidden, layers, bias=bias, bidirectional=both_ways)
    return {name: p.detach() for name, p in module.named_parameters()}


for name, kind, op, flags, sizes, extra, options in [
    ("gru-ragged", torch.nn.GRU, "gru", "", (5, 6, 2, True), dict(h_0=torch.randn(4, 4, 6), lengths=[4, 7, 1, 3]), {}),
    ("gru-one-layer", torch.nn.GRU, "gru", "", (3, 37, 1, False, False), {}, {}),
    ("rnn-ragged", torch.nn.RNN, "rnn", "--nonlinearity relu", (5, 6, 2, True), dict(lengths=[4, 7, 1, 3]),
     dict(nonlinearity="relu")),
    ("rnn-tanh", torch.nn.RNN, "rnn", "", (4, 3, 3, False), dict(h_0=torch.randn(3, 4, 3)), {}),
]:
    if "lengths" in extra:
        extra["lengths"] = torch.tensor(extra["lengths"])
    inputs = {"x": torch.randn(4, 7, sizes[0])} | extra | parameters(kind, *sizes)
    save(name, op, flags, inputs, recurrent(kind, *sizes[1:], **options), also="h_n")


def ffnn(activation):
    def compute(x, **parameters):
        layers = torch.nn.Sequential(torch.nn.Linear(*parameters["0.weight"].shape[::-1]), activation,
                                     torch.nn.Linear(*parameters["2.weight"].shape[::-1]))
        return {"out": torch.func.functional_call(layers, parameters, (x,))}
    return compute


# Both ways of computing it: fused, and with 33 outputs as two layers.
for name, flags, activation, outputs in [
    ("ffnn-tanh", "", torch.nn.Tanh(), 2), ("ffnn-relu", "--activation relu", torch.nn.ReLU(), 5),
    ("ffnn-gelu", "--activation gelu-erf", torch.nn.GELU(), 33),
    ("ffnn-gelu-tanh", "--activation gelu-tanh", torch.nn.GELU(approximate="tanh"), 1),
]:
    save(name, "ffnn", flags, {
        "x": torch.randn(3, 7, 5), "0.weight": torch.randn(20, 5), "0.bias": torch.randn(20),
        "2.weight": torch.randn(outputs, 20), "2.bias": torch.randn(outputs),
    }, ffnn(activation))
print(*sorted(p.name for p in HERE.glob("*.safetensors")), sep="\n")
