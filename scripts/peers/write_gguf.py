"""Write a Llama checkpoint as GGUF without a vocabulary, which llama.cpp runs on token ids.

    python write_gguf.py CHECKPOINT_DIR OUT_FILE --type bf16|f16|f32|q8_0

Needs the `gguf` package. llama.cpp's own converter wants tokenizers that it knows. Expects one
`model.safetensors` in bfloat16 with tied embeddings, as `scripts/make_bench_model.py` writes it.
"""

import argparse
import json
from pathlib import Path

import gguf
import numpy as np

TYPES = {
    "bf16": gguf.GGMLQuantizationType.BF16,
    "f16": gguf.GGMLQuantizationType.F16,
    "f32": gguf.GGMLQuantizationType.F32,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
}
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def read_bfloat16(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file, in float32."""
    data = np.memmap(path, mode="r", dtype=np.uint8)
    header_size = int(data[:8].view("<u8")[0])
    header = json.loads(data[8 : 8 + header_size].tobytes())
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] != "BF16":
            raise SystemExit(f"{name} is {entry['dtype']}; this converter reads BF16 alone.")
        start, end = (8 + header_size + offset for offset in entry["data_offsets"])
        bits = data[start:end].view("<u2").astype(np.uint32) << 16
        tensors[name] = bits.view(np.float32).reshape(entry["shape"])
    return tensors


def interleave_heads(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of a query or key projection, from halves that rotate together to neighbours."""
    num_rows, num_columns = weight.shape
    halves = weight.reshape(num_heads, 2, num_rows // num_heads // 2, num_columns)
    return halves.swapaxes(1, 2).reshape(num_rows, num_columns)


def gguf_name(name: str) -> str:
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    layer, _, rest = name.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{LAYER_NAMES[rest.removesuffix('.weight')]}.weight"


def write_settings(writer: gguf.GGUFWriter, config: dict) -> None:
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    rope_theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(rope_theta)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out_file", type=Path)
    parser.add_argument("--type", choices=TYPES, default="bf16")
    args = parser.parse_args()
    config = json.loads((args.checkpoint / "config.json").read_text())
    if config["model_type"] != "llama" or not config["tie_word_embeddings"]:
        raise SystemExit("This converter knows Llama checkpoints with tied embeddings alone.")
    num_heads = {
        "q_proj": config["num_attention_heads"],
        "k_proj": config["num_key_value_heads"],
    }
    writer = gguf.GGUFWriter(args.out_file, "llama")
    write_settings(writer, config)
    for name, weight in read_bfloat16(args.checkpoint / "model.safetensors").items():
        projection = name.removesuffix(".weight").rpartition(".")[2]
        if projection in num_heads:
            weight = interleave_heads(weight, num_heads[projection])
        # Norms stay in float32, as llama.cpp multiplies by them in it.
        wanted = TYPES[args.type] if weight.ndim > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(gguf_name(name), gguf.quantize(weight, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    print(f"{args.out_file}: {args.out_file.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
