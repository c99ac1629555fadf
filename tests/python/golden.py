#!/usr/bin/env python3
"""Computes the logits that `inference/tests/golden.rs` compares with, using Hugging Face transformers.

Needs `torch`, `transformers`, `gguf` and `blake3` from PyPI; runs in a minute on a CPU:

    cargo run -p accel-inference --example write_synthetic -- /tmp/models
    python tests/python/golden.py /tmp/models inference/tests/data/golden

What a model is comes from its file alone: this script reads the metadata and the tensors as any
other engine would, so that a file which says the wrong thing gives the wrong logits.
"""

import argparse
import json
from pathlib import Path

import gguf
import torch
import transformers
from blake3 import blake3
from gguf import GGUFReader
from gguf.quants import dequantize

LENGTH = 48
POSITIONS = [0, 5, 17, 31, 40, 47]

# Names after `blk.N.` and what transformers calls them.
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
GEMMA_NAMES = LAYER_NAMES | {
    "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
PHI3_NAMES = LAYER_NAMES | {"ffn_up": "mlp.gate_up_proj"}

CLASSES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
    "mixtral": (transformers.MixtralConfig, transformers.MixtralForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen2moe": (transformers.Qwen2MoeConfig, transformers.Qwen2MoeForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    "gemma2": (transformers.Gemma2Config, transformers.Gemma2ForCausalLM),
    "gemma3": (transformers.Gemma3TextConfig, transformers.Gemma3ForCausalLM),
    "phi3": (transformers.Phi3Config, transformers.Phi3ForCausalLM),
}


class Model:
    """One GGUF file: its metadata and its tensors in the order of torch, as float32."""

    def __init__(self, path):
        reader = GGUFReader(path)
        self.name = path.stem
        self.fields = {key: field.contents() for key, field in reader.fields.items()}
        self.arch = self.fields["general.architecture"]
        self.tensors = {t.name: values_of(t) for t in reader.tensors}

    def get(self, key, default=None):
        return self.fields.get(f"{self.arch}.{key}", default)

    @property
    def family(self):
        """Which class of transformers computes it: three of them share `llama`."""
        if self.arch != "llama":
            return self.arch
        if self.get("expert_count"):
            return "mixtral"
        return "mistral" if self.name.startswith("mistral") else "llama"

    @property
    def head_dim(self):
        return self.get("attention.key_length", self.get("embedding_length") // self.get("attention.head_count"))


def values_of(tensor):
    shape = [int(n) for n in reversed(tensor.shape)]
    values = dequantize(tensor.data, tensor.tensor_type)
    return torch.from_numpy(values.copy()).to(torch.float32).reshape(shape)


def rope_of(model):
    """The rotary embedding as transformers describes it."""
    rope = {"rope_type": "default", "rope_theta": model.get("rope.freq_base", 10000.0)}
    original = model.get("rope.scaling.original_context_length")
    kind = model.get("rope.scaling.type")
    if kind is not None:
        rope |= {"rope_type": kind, "factor": model.get("rope.scaling.factor")}
    if kind == "yarn":
        rope["original_max_position_embeddings"] = original
    if "rope_factors_long.weight" in model.tensors:
        rope |= {
            "rope_type": "longrope",
            "long_factor": model.tensors["rope_factors_long.weight"].tolist(),
            "short_factor": model.tensors["rope_factors_short.weight"].tolist(),
            "original_max_position_embeddings": original,
        }
    if model.name == "llama-llama3":
        # The file holds what comes out of this, which `check_divisors` looks at.
        rope |= {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": model.get("context_length") // 4,
        }
    if model.arch == "phi3":
        rope["partial_rotary_factor"] = model.get("rope.dimension_count") / model.head_dim
    if model.arch == "gemma3":
        local = {"rope_type": "default", "rope_theta": model.get("rope.freq_base_swa", 10000.0)}
        return {"full_attention": rope, "sliding_attention": local}
    return rope


def config_of(model):
    settings = {
        "vocab_size": model.tensors["token_embd.weight"].shape[0],
        "hidden_size": model.get("embedding_length"),
        "intermediate_size": model.get("feed_forward_length"),
        "num_hidden_layers": model.get("block_count"),
        "num_attention_heads": model.get("attention.head_count"),
        "num_key_value_heads": model.get("attention.head_count_kv"),
        "max_position_embeddings": model.get("context_length"),
        "rms_norm_eps": model.get("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in model.tensors,
        "rope_parameters": rope_of(model),
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if model.arch == "phi3":
        settings["original_max_position_embeddings"] = model.get("rope.scaling.original_context_length")
    else:
        settings["head_dim"] = model.head_dim
    if model.family in ("mistral", "mixtral"):
        settings["sliding_window"] = None
    if model.family == "mixtral":
        settings["num_local_experts"] = model.get("expert_count")
    if model.get("expert_count"):
        settings["num_experts_per_tok"] = model.get("expert_used_count")
    if model.arch == "qwen2moe":
        settings |= {
            "num_experts": model.get("expert_count"),
            "moe_intermediate_size": model.get("expert_feed_forward_length"),
            "shared_expert_intermediate_size": model.get("expert_shared_feed_forward_length"),
            "norm_topk_prob": False,
            "decoder_sparse_step": 1,
        }
    if model.arch.startswith("gemma"):
        settings |= {
            "sliding_window": model.get("attention.sliding_window"),
            "query_pre_attn_scalar": model.head_dim,
            "attn_logit_softcapping": model.get("attn_logit_softcapping"),
            "final_logit_softcapping": model.get("final_logit_softcapping"),
        }
    return CLASSES[model.family][0](**settings)


def unpermuted(model, values, heads):
    """Rows of queries or keys of `llama`, where the two values that turn together are neighbours."""
    rows = values.reshape(heads, model.head_dim // 2, 2, *values.shape[1:])
    return rows.swapaxes(1, 2).reshape(values.shape)


def state_of(model):
    """The state dictionary for transformers; every tensor of the file must be used."""
    left = dict(model.tensors)
    state = {
        "model.embed_tokens.weight": left["token_embd.weight"],
        "lm_head.weight": left.pop("output.weight", left["token_embd.weight"]),
        "model.norm.weight": left.pop("output_norm.weight"),
    }
    del left["token_embd.weight"]
    for name in ("rope_freqs", "rope_factors_long", "rope_factors_short"):
        left.pop(f"{name}.weight", None)
    names = LAYER_NAMES
    if model.arch.startswith("gemma"):
        names = GEMMA_NAMES
    if model.arch == "phi3":
        names = PHI3_NAMES
    for layer in range(model.get("block_count")):
        prefix = f"blk.{layer}."
        own = {name.removeprefix(prefix): left.pop(name) for name in list(left) if name.startswith(prefix)}
        state |= {f"model.layers.{layer}.{name}": v for name, v in layer_state(model, own, names)}
    assert not left, f"{model.name}: nobody uses {sorted(left)}"
    if model.arch.startswith("gemma"):
        # The file holds the factor itself, transformers adds one.
        for name in state:
            if name.endswith("norm.weight"):
                state[name] = state[name] - 1.0
    return state


def layer_state(model, own, names):
    if model.get("expert_count"):
        gate, up = own.pop("ffn_gate_exps.weight"), own.pop("ffn_up_exps.weight")
        yield "mlp.experts.gate_up_proj", torch.cat([gate, up], dim=1)
        yield "mlp.experts.down_proj", own.pop("ffn_down_exps.weight")
    for name, values in own.items():
        stem, kind = name.rsplit(".", 1)
        if model.arch == "llama" and stem == "attn_q":
            values = unpermuted(model, values, model.get("attention.head_count"))
        if model.arch == "llama" and stem == "attn_k":
            values = unpermuted(model, values, model.get("attention.head_count_kv"))
        if stem == "ffn_gate_inp_shexp":
            values = values.reshape(1, -1)
        if model.arch.startswith("gemma") and stem not in names:
            raise ValueError(f"what is {name}?")
        yield f"{names[stem]}.{kind}", values


def check_divisors(model, network):
    """Applies the divisors of the rope frequencies, or checks them where transformers has its own."""
    divisors = model.tensors.get("rope_freqs.weight")
    if divisors is None:
        return
    rotary = network.model.rotary_emb
    exponents = torch.arange(0, model.head_dim, 2, dtype=torch.float64) / model.head_dim
    expected = model.get("rope.freq_base") ** -exponents / divisors
    if model.name == "llama-llama3":
        torch.testing.assert_close(rotary.inv_freq.double(), expected, rtol=1e-6, atol=0)
        assert divisors.unique().numel() > 2, "the divisors should be of all three kinds"
    else:
        rotary.inv_freq = expected.to(rotary.inv_freq.dtype)


def check_attention_factor(model, network):
    """The file states a factor that transformers works out itself."""
    stated = model.get("rope.scaling.attn_factor")
    if stated is not None:
        assert abs(stated - network.model.rotary_emb.attention_scaling) < 1e-6


def watch_routers(network):
    """Collects how far the last chosen expert is ahead of the first that is not.

    Too close, and rounding decides who is chosen; the seeds of these models are picked for it.
    """
    margins = []

    def note(module, _inputs, outputs):
        logits, _, chosen = outputs
        assert chosen.unique().numel() == module.num_experts, "every expert should be chosen by some token"
        ranked = logits.sort(dim=-1, descending=True).values
        margins.append((ranked[:, module.top_k - 1] - ranked[:, module.top_k]).min().item())

    for module in network.modules():
        if type(module).__name__.endswith("TopKRouter"):
            module.register_forward_hook(note)
    return margins


def network_of(model):
    network = CLASSES[model.family][1]._from_config(config_of(model), attn_implementation="eager")
    if model.get("expert_count"):
        network.set_experts_implementation("eager")
    network.load_state_dict(state_of(model), strict=True)
    check_divisors(model, network)
    check_attention_factor(model, network)
    return network.float().eval()


def tokens_of(model):
    vocab = model.tensors["token_embd.weight"].shape[0]
    return [(31 * i * i + 7 * i + 2) % vocab for i in range(LENGTH)]


@torch.no_grad()
def golden(path, spec):
    model = Model(path)
    network = network_of(model)
    margins = watch_routers(network)
    tokens = tokens_of(model)
    logits = network(torch.tensor([tokens]), use_cache=False).logits[0]
    rows = logits[POSITIONS]
    margin = f", routers decide by {min(margins):.4f}" if margins else ""
    print(f"{model.name}: deviation {rows.std():.3f}, largest {rows.abs().max():.3f}{margin}")
    return {
        "model": model.name,
        "spec": spec,
        "blake3": blake3(path.read_bytes()).hexdigest(),
        "computed_by": {"transformers": transformers.__version__, "torch": torch.__version__},
        "tokens": tokens,
        "positions": POSITIONS,
        "logits": [[float(f"{value:.6g}") for value in row] for row in rows.tolist()],
    }


def write(data, path):
    """One line for each key and each row of logits."""
    lines = [f"  {json.dumps(key)}: {json.dumps(data[key])}" for key in data if key != "logits"]
    rows = ",\n".join("    " + json.dumps(row, separators=(",", ":")) for row in data["logits"])
    lines.append(f'  "logits": [\n{rows}\n  ]')
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, help="where write_synthetic wrote to")
    parser.add_argument("data", type=Path, help="where the JSON files go")
    parser.add_argument("--only", nargs="*", help="names of models")
    options = parser.parse_args()
    options.data.mkdir(parents=True, exist_ok=True)
    specs = json.loads((options.models / "specs.json").read_text())
    for name, spec in specs.items():
        if not options.only or name in options.only:
            data = golden(options.models / f"{name}.gguf", spec)
            write(data, options.data / f"{name}.json")


if __name__ == "__main__":
    main()
