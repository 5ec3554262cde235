"""Makes the models beside this file: small random GPT-2s of transformers with their logits, in the layouts that are read.

    pip install torch==2.11.0 transformers==5.23.0 safetensors && python tests/golden/gpt2/make.py

Each folder holds a Hugging Face directory and `expected.safetensors`: `tokens`, and the `logits` that transformers computed
in float64. `mingpt.pt` holds the weights of `tied` as minGPT's state dict: nn.Linear's layout, a head of its own, and the masks
that it keeps as buffers. tests/gpt2_files.rs reads them.
"""
import collections
import json
import pathlib
import shutil

import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

HERE = pathlib.Path(__file__).parent
SIZES = dict(n_layer=2, n_head=2, n_embd=8, n_positions=10, vocab_size=11)


def make(name, seed, shard="1GB", **options):
    torch.manual_seed(seed)
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    model = GPT2LMHeadModel(GPT2Config(**SIZES, **options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)
    model.save_pretrained(folder, max_shard_size=shard)
    (folder / "generation_config.json").unlink(missing_ok=True)
    tokens = torch.randint(SIZES["vocab_size"], (2, SIZES["n_positions"]))
    with torch.no_grad():
        logits = model.double()(tokens).logits
    save_file({"tokens": tokens, "logits": logits}, folder / "expected.safetensors")
    return model.float()


tied = make("tied", 1, activation_function="gelu_new")
make("untied-sharded", 2, "4KB", activation_function="gelu", n_inner=20, layer_norm_epsilon=1e-3, tie_word_embeddings=False)

# As files of before: no prefix, masks among the weights, and a config that leaves defaults out.
old = make("old-names", 3, activation_function="relu")
length = SIZES["n_positions"]
mask = torch.tril(torch.ones(length, length)).view(1, 1, length, length)
tensors = {k.removeprefix("transformer."): v.clone() for k, v in old.state_dict().items() if k != "lm_head.weight"}
for layer in range(SIZES["n_layer"]):
    tensors[f"h.{layer}.attn.bias"] = mask.clone()
    tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
save_file(tensors, HERE / "old-names/model.safetensors", metadata={"format": "pt"})
(HERE / "old-names/config.json").write_text(json.dumps(
    SIZES | {"model_type": "gpt2", "n_ctx": length, "activation_function": "relu", "summary_type": "cls_index"}, indent=2))

state = collections.OrderedDict()
for name, value in tied.state_dict().items():
    conv1d = name.endswith("weight") and (".attn.c_" in name or ".mlp.c_" in name)
    state[name] = value.t().contiguous() if conv1d else value.clone()
for layer in range(SIZES["n_layer"]):
    state[f"transformer.h.{layer}.attn.bias"] = mask.clone()
state._metadata = collections.OrderedDict({"": {"version": 1}})
torch.save(state, HERE / "mingpt.pt")
