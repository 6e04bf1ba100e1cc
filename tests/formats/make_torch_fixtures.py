"""Writes fixtures/torch/: a small ViT as `torch.save` writes it, by many hands.

PyTorch, timm, Lightning and transformers write with their own functions. Of DeiT, MAE
and DINO the call at the end of an epoch is written as their public training code has
it. Nothing of vit_jax is used. It needs the extra [crosscheck]:

    python -m tests.formats.make_torch_fixtures
"""

import argparse
import collections
import copy
import datetime
import json
import pathlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch  # pyright: ignore[reportMissingImports]
import timm  # pyright: ignore[reportMissingImports]
import torch  # pyright: ignore[reportMissingImports]
import transformers  # pyright: ignore[reportMissingImports]
from timm.models.vision_transformer import VisionTransformer  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]

from tests.formats import drawn

FOLDER = drawn.FIXTURES / "torch"
SIZE = (4, 4)
TINY: dict[str, Any] = {
    "img_size": 4,
    "patch_size": 2,
    "embed_dim": 4,
    "depth": 1,
    "num_heads": 1,
    "mlp_ratio": 1.5,
}
# The models of a file by `weights` of `vit_jax.load`; "" is what is taken without it.
Models = dict[str, nn.Module]


def draw(model: Any, seed: int = 0) -> Any:
    """The same model with other weights, in few digits so that fixtures pack well."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            drawn_ = torch.randn(parameter.shape) / 2 + (parameter.ndim == 1) / 2
            parameter.copy_((drawn_ * 32).round() / 32)
    return model


def vit(num_classes: int = 3, seed: int = 0) -> Any:
    return draw(VisionTransformer(**TINY, num_classes=num_classes), seed)


class Odd:
    """An object of a class that no reader has."""

    def __init__(self) -> None:
        self.value = 1


def script_args() -> argparse.Namespace:
    """What scripts keep beside the weights."""
    return argparse.Namespace(
        model="vit_tiny",
        lr=5e-4,
        betas=(0.9, 0.95),
        output_dir=pathlib.PurePosixPath("/tmp/run"),
        device=torch.device("cpu"),
        dtype=torch.bfloat16,
        shape=torch.Size([1, 2]),
        seen={1, 2},
        frozen=frozenset({3}),
        counts=collections.defaultdict(list, {"a": [1]}),
        scalar=np.float64(0.5),
        array=np.arange(3),
        random=np.random.default_rng(0),
        time=datetime.datetime(2024, 1, 1),
        kind=np.float32,
        odd=Odd(),
        big=2**80,
        nothing=None,
    )


def trained(model: Any, momentum: float = 0.9) -> Any:
    """An optimizer with a state, after a step that changes nothing."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=momentum)
    model(torch.zeros(1, 3, *SIZE)).sum().backward()
    optimizer.step()
    model.zero_grad()
    return optimizer


def plain(path: Path) -> Models:
    model = vit()
    torch.save(model.state_dict(), path)
    return {"": model}


def old(path: Path) -> Models:
    """PyTorch's format of before 1.6."""
    model = vit()
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)
    return {"": model}


def compiled(path: Path) -> Models:
    """Compiled as a whole and, another time, its layers."""
    model = vit()
    layers = copy.deepcopy(model)
    layers.blocks[0] = torch.compile(layers.blocks[0])
    found = torch.compile(layers).state_dict()
    assert "_orig_mod.blocks.0._orig_mod.norm1.bias" in found
    torch.save({"net": found, "acc": 91.5, "epoch": 3}, path)
    return {"": model}


def half(path: Path) -> Models:
    model = vit()
    torch.save({"module": copy.deepcopy(model).half().state_dict()}, path)
    return {"": model}


def averaged(path: Path) -> Models:
    """PyTorch's own average of a model, as `torch.optim.swa_utils` makes it."""
    model = vit()
    average = torch.optim.swa_utils.AveragedModel(vit(seed=1))
    states = {"model_state_dict": model.state_dict(), "loss": torch.tensor(0.5)}
    torch.save({**states, "ema_state_dict": average.state_dict()}, path)
    return {"": average.module, "model_state_dict": model}


def timm_saver(path: Path) -> Models:
    """timm's training script."""
    model, average = vit(), timm.utils.ModelEmaV3(vit(seed=1))
    saver = timm.utils.CheckpointSaver(
        model,
        trained(model),
        args=script_args(),
        model_ema=average,
        amp_scaler=timm.utils.NativeScaler(device="cpu"),
        checkpoint_dir=str(path.parent),
    )
    saver.save_checkpoint(0, metric=50.0)
    path.parent.joinpath("checkpoint-0.pth.tar").rename(path)
    for name in ("last.pth.tar", "model_best.pth.tar"):
        path.parent.joinpath(name).unlink()
    return {"": average.module, "state_dict": model}


def timm_hub(path: Path) -> Models:
    """timm's `save_for_hf`, without safetensors."""
    model = vit()
    cfg = timm.create_model("vit_tiny_patch16_224", depth=1).pretrained_cfg
    model.pretrained_cfg = {**cfg, "input_size": (3, *SIZE), "num_classes": 3}
    timm.models.save_for_hf(model, str(path), model_args=TINY)
    return {"": model}


def lightning(path: Path) -> Models:
    """`Trainer.save_checkpoint`."""
    import pytorch_lightning  # pyright: ignore[reportMissingImports]

    class Module(pytorch_lightning.LightningModule):
        def __init__(self, lr: float = 0.0, options: Any = None) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.model = vit()
            self.criterion = nn.CrossEntropyLoss(weight=torch.ones(3))

        def training_step(self, batch: Any, _: int) -> Any:
            images, labels = batch
            return self.criterion(self.model(images), labels)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    module = Module(options={"path": pathlib.PurePosixPath("/tmp"), "odd": Odd()})
    images = torch.zeros(2, 3, *SIZE)
    data = torch.utils.data.TensorDataset(images, torch.zeros(2, dtype=torch.int64))
    trainer = pytorch_lightning.Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=2))
    trainer.save_checkpoint(path)
    return {"": module.model}


def hugging_face(path: Path) -> Models:
    """As transformers' `save_pretrained` did until it wrote safetensors alone."""
    config = transformers.ViTConfig(
        hidden_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=6,
        image_size=4,
        patch_size=2,
        num_labels=3,
    )
    model = draw(transformers.ViTForImageClassification(config))
    model.save_pretrained(path)
    # On disk are the names that they always had; in memory are others today.
    file = path / "model.safetensors"
    state_dict = collections.OrderedDict(safetensors.torch.load_file(file))
    setattr(state_dict, "_metadata", model.state_dict()._metadata)  # noqa: B010
    file.unlink()
    torch.save(state_dict, path / "pytorch_model.bin")
    return {"": Logits(model)}


class Logits(nn.Module):
    """A model of transformers that returns what timm's do."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Any) -> Any:
        return self.model(images).logits


def deit(path: Path) -> Models:
    """DeiT's main.py; of its average timm's `get_state_dict` gives the state."""
    model, model_ema = vit(), timm.utils.ModelEma(vit(seed=1))
    optimizer = trained(model)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    torch.save(
        {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "lr_scheduler": scheduler.state_dict(),
            "epoch": 7,
            "model_ema": timm.utils.get_state_dict(model_ema),
            "scaler": torch.amp.GradScaler("cpu").state_dict(),
            "args": script_args(),
        },
        path,
    )
    return {"": model_ema.ema, "model": model}


class MaskedAutoencoder(VisionTransformer):
    """A ViT with MAE's decoder beside it."""

    def __init__(self) -> None:
        super().__init__(**TINY, num_classes=0)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 2))
        self.decoder_embed = nn.Linear(4, 2)
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, 5, 2), requires_grad=False)
        block = timm.models.vision_transformer.Block(2, 1, 1.0, qkv_bias=True)
        self.decoder_blocks = nn.ModuleList([block])
        self.decoder_norm = nn.LayerNorm(2)
        self.decoder_pred = nn.Linear(2, 12)


def mae(path: Path) -> Models:
    """MAE's pre-training."""
    model = draw(MaskedAutoencoder())
    to_save = {
        "model": model.state_dict(),
        "optimizer": torch.optim.AdamW(model.parameters()).state_dict(),
        "epoch": 7,
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
        "args": script_args(),
    }
    torch.save(to_save, path)
    return {"": model}


class MultiCropWrapper(nn.Module):
    """DINO's: a backbone, and the head that projects to prototypes."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.backbone = vit(num_classes=0, seed=seed)
        self.head = nn.Module()
        self.head.mlp = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2))
        self.head.last_layer = nn.utils.weight_norm(nn.Linear(2, 3, bias=False))

    def forward(self, images: Any) -> Any:
        return self.head.last_layer(self.head.mlp(self.backbone(images)))


def dino(path: Path) -> Models:
    """DINO's main_dino.py, whose student stands in a module for several devices."""
    student, teacher = MultiCropWrapper(seed=0), MultiCropWrapper(seed=1)
    wrapped = nn.DataParallel(student)
    dino_loss = nn.Module()
    dino_loss.register_buffer("center", torch.zeros(1, 3))
    save_dict = {
        "student": wrapped.state_dict(),
        "teacher": teacher.state_dict(),
        "optimizer": torch.optim.AdamW(student.parameters()).state_dict(),
        "epoch": 8,
        "args": script_args(),
        "dino_loss": dino_loss.state_dict(),
        "fp16_scaler": torch.amp.GradScaler("cpu").state_dict(),
    }
    torch.save(save_dict, path)
    return {"": teacher.backbone, "student": student.backbone}


def image_tower(path: Path) -> Models:
    """The names of a ViT of timm in a model of images and texts of open_clip's."""
    model = nn.Module()
    model.visual = nn.Module()
    model.visual.trunk = vit(num_classes=0)
    model.text = nn.Module()
    model.text.token_embedding = nn.Embedding(5, 4)
    model.logit_scale = nn.Parameter(torch.ones(()))
    torch.save({"epoch": 1, "name": "run", "state_dict": model.state_dict()}, path)
    return {"": model.visual.trunk}


WRITERS: dict[str, Callable[[Path], Models]] = {
    "plain.pth": plain,
    "old.pth": old,
    "compiled.pt": compiled,
    "half.bin": half,
    "averaged.pt": averaged,
    "timm-saver.pth.tar": timm_saver,
    "timm-hub": timm_hub,
    "lightning.ckpt": lightning,
    "hugging-face": hugging_face,
    "deit.pth": deit,
    "mae.pth": mae,
    "dino.pth": dino,
    "image-tower.pt": image_tower,
}


def write(name: str, folder: Path) -> dict[str, Any]:
    """Writes a checkpoint into a folder.

    Returns:
      What its models compute of `drawn.images`, in float64.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is old, as these files are
        models = WRITERS[name](folder / name)
    images = torch.tensor(drawn.images(SIZE)).permute(0, 3, 1, 2).double()
    with torch.no_grad():
        return {
            weights: model.eval().double()(images).tolist()
            for weights, model in models.items()
        }


def write_tensors(path: Path) -> dict[str, Any]:
    """Views, shared storages and half precision.

    Returns:
      Their values.
    """
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    tensors = {
        "base": base,
        "view": base[1:, ::2].T,
        "row": base[2],
        "parameter": nn.Parameter(base),
        "brain": base.bfloat16(),
        "half": base.half()[1:].T,
        "number": torch.tensor(3),
        "empty": torch.zeros(0, 3),
    }
    torch.save({"model": tensors, "epoch": 3}, path)
    return {name: tensor.tolist() for name, tensor in tensors.items()}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    outputs = {name: write(name, FOLDER) for name in WRITERS}
    tensors = write_tensors(FOLDER / "tensors.pth")
    text = json.dumps({"outputs": outputs, "tensors": tensors})
    (FOLDER / "outputs.json").write_text(text + "\n")
    for path in sorted(p for p in FOLDER.rglob("*") if p.is_file()):
        print(f"{path.relative_to(FOLDER)}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
