"""Program that torchrun starts in test_distributed.py: 51 steps, and the first process writes the losses."""

import json
import sys
from pathlib import Path

import torch

from runtime.images.preprocess import Preprocess
from vit.config import ViTConfig
from vit.data.batches import Store
from vit.data.training_images import open_data
from vit.model import new_model
from vit.training.distributed import join_processes
from vit.training.loop import Loop
from vit.training.recipe import Recipe


def main(photos: str, out: str) -> None:
    torch.set_num_threads(1)
    recipe = Recipe(
        epochs=17,
        batch=8,
        lr=3e-3,
        flip=True,
        crop=0.5,
        mixup=0.3,
        erasing=0.5,
        randaugment=1,
        balance=True,
        bad_images=0.2,
        holdout=0.0,
    )
    data = open_data(photos, holdout=0.0)
    config = ViTConfig(image_size=(8, 8), patch_size=4, width=16, depth=2, heads=2, mlp_width=32, classes=3)
    losses = []
    device = torch.device("cpu")
    with join_processes(device) as world:
        loop = Loop(
            new_model(config, 0),
            Store(data.train, Preprocess(size=(10, 10)), bad_share=0.2),
            data.train.targets,
            classes=3,
            recipe=recipe,
            device=device,
            size=(8, 8),
            validation=(Store(data.test, Preprocess(size=(8, 8))), data.test.targets),
            world=world,
        )
        history = loop.run(on_step=lambda progress, loss: losses.append(loss))
        if world.first:
            Path(out).write_text(
                json.dumps({"losses": losses, "history": history, "size": world.size}), encoding="utf-8"
            )


if __name__ == "__main__":
    main(*sys.argv[1:])
