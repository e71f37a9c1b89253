"""Started by torchrun: two optimiser steps with torch's own FSDP2, one process with a picture and the other with text.

    torchrun --nproc_per_node 2 sharded_steps.py MODEL_FOLDER OUT

Writes the losses to OUT/losses.json and the trained model, put together again, to OUT/model.
"""

import json
import sys
from pathlib import Path

import torch
from torch import distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForImageTextToText

import aligngpt  # noqa: F401  registers the model


def batch_of(rank: int, image_tokens: int, image_id: int, align_id: int) -> dict[str, torch.Tensor]:
    """A sample with a picture for the first process, text for the second."""
    words = [5, 6, 7, 8, 9]
    ids = [1, align_id, *[image_id] * image_tokens, *words] if rank == 0 else [1, *words, 10, 11]
    labels = [-100] * (len(ids) - 2) + ids[-2:]
    batch = {"input_ids": torch.tensor([ids]), "labels": torch.tensor([labels])}
    if rank == 0:
        batch["pixel_values"] = torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)
    return batch


def main(folder: str, out: Path) -> None:
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    model = AutoModelForImageTextToText.from_pretrained(folder).train()
    model.model.vision_tower.requires_grad_(False)
    config = model.config
    mesh = init_device_mesh("cpu", (world,))
    for layer in model.model.language_model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.1)
    batch = batch_of(rank, config.image_seq_length, config.image_token_id, config.align_token_id)
    losses = []
    for _ in range(2):
        # FSDP averages gradients; each process has two of the four tokens that count.
        loss = model(**batch, num_items_in_batch=4).loss * world
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        total = loss.detach() / world
        dist.all_reduce(total)
        losses.append(total.item())
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    whole = get_model_state_dict(model, options=options)
    kinds = sorted({type(parameter.data).__name__ for parameter in model.parameters()})
    if rank == 0:
        out.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(out / "model", state_dict=whole)
        (out / "losses.json").write_text(json.dumps({"losses": losses, "kinds": kinds}))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
