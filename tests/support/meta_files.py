"""Meta's folders and llama2.c's training checkpoints for tests, made from models of transformers or from arrays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llama2cpp import Config

Arrays = dict[str, NDArray[np.float32]]

# Along which axis Meta's model-parallel layers cut each matrix; gains are whole in every shard.
_ROWS = ("wq", "wk", "wv", "w1", "w3", "output")
_COLUMNS = ("wo", "w2")


def of_transformers(model: Any) -> dict[str, torch.Tensor]:
    """The weights of a random Llama of transformers' under Meta's names, with Meta's order of rotary pairs."""
    config = model.config
    head_dim = config.hidden_size // config.num_attention_heads
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}

    def pairs(tensor: torch.Tensor) -> torch.Tensor:
        """From (j, j + head_dim / 2) to (2j, 2j + 1)."""
        return tensor.reshape(-1, 2, head_dim // 2, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)

    weights = {
        "tok_embeddings.weight": state["model.embed_tokens.weight"],
        "norm.weight": state["model.norm.weight"],
        "output.weight": state["lm_head.weight"],
    }
    for layer in range(config.num_hidden_layers):
        theirs, ours = f"model.layers.{layer}", f"layers.{layer}"
        weights |= {
            f"{ours}.attention.wq.weight": pairs(state[f"{theirs}.self_attn.q_proj.weight"]),
            f"{ours}.attention.wk.weight": pairs(state[f"{theirs}.self_attn.k_proj.weight"]),
            f"{ours}.attention.wv.weight": state[f"{theirs}.self_attn.v_proj.weight"],
            f"{ours}.attention.wo.weight": state[f"{theirs}.self_attn.o_proj.weight"],
            f"{ours}.feed_forward.w1.weight": state[f"{theirs}.mlp.gate_proj.weight"],
            f"{ours}.feed_forward.w2.weight": state[f"{theirs}.mlp.down_proj.weight"],
            f"{ours}.feed_forward.w3.weight": state[f"{theirs}.mlp.up_proj.weight"],
            f"{ours}.attention_norm.weight": state[f"{theirs}.input_layernorm.weight"],
            f"{ours}.ffn_norm.weight": state[f"{theirs}.post_attention_layernorm.weight"],
        }
    return weights


def shard(weights: dict[str, torch.Tensor], count: int, *, embedding_axis: int) -> list[dict[str, torch.Tensor]]:
    """Cut weights as Meta does: the embedding by columns (axis 1) in Llama 2, by rows (axis 0) in Llama 3."""
    shards: list[dict[str, torch.Tensor]] = [{} for _ in range(count)]
    for name, tensor in weights.items():
        kind = name.removesuffix(".weight").rsplit(".", 1)[-1]
        axis = 0 if kind in _ROWS else 1 if kind in _COLUMNS else embedding_axis if kind == "tok_embeddings" else None
        parts = [tensor] * count if axis is None else tensor.chunk(count, dim=axis)
        for each, part in zip(shards, parts, strict=True):
            each[name] = part.clone()
    return shards


def save_meta_folder(folder: Path, shards: list[dict[str, torch.Tensor]], params: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / "params.json").write_text(json.dumps(params))
    for i, tensors in enumerate(shards):
        torch.save(tensors, folder / f"consolidated.{i:02}.pth")
    return folder


def save_training_checkpoint(path: Path, config: Config, arrays: Arrays, *, prefix: str = "_orig_mod.") -> Path:
    """What llama2.c's train.py saves, with the state of its optimizer."""
    weights = {prefix + name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    if config.tied:
        weights[f"{prefix}output.weight"] = weights[f"{prefix}tok_embeddings.weight"]  # one storage, two names
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    args = {
        "dim": config.dim,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "n_kv_heads": config.n_kv_heads,
        "vocab_size": config.vocab_size,
        "multiple_of": 4,
        "max_seq_len": config.seq_len,
        "dropout": 0.0,
    }
    content = {
        "model": weights,
        "optimizer": optimizer.state_dict(),
        "model_args": args,
        "iter_num": 10,
        "best_val_loss": torch.tensor(1.5),
        "config": {"out_dir": "out", "learning_rate": 5e-4, "compile": True},
    }
    torch.save(content, path)
    return path
