"""Checkpoints: one safetensors file with weights, optimizer, counters, and a digest of it all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from citypaths.files import DataFileError, atomic_write, read_sealed, sha256
from citypaths.models import PathModel, build


def pack(model: PathModel, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return all that training changes: `model.*`, `optimizer.*`, and torch's random state."""
    tensors = {f"model.{k}": v for k, v in _weights(model).items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{key}"] = value
    tensors["random"] = torch.get_rng_state()
    device = next(model.parameters()).device
    if device.type == "cuda":
        tensors["random_cuda"] = torch.cuda.get_rng_state(device)
    return tensors


def unpack(tensors: dict[str, Tensor], model: PathModel, optimizer: torch.optim.Optimizer) -> None:
    """Put what `pack` gave back into place; the model has the same shape, maybe another device."""
    load_weights(model, tensors)
    for name, parameter in model.named_parameters():
        start = f"optimizer.{name}."
        state = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
        moved = {k: v if k == "step" else v.to(parameter.device) for k, v in state.items()}
        optimizer.state[parameter] = moved
    torch.set_rng_state(tensors["random"])
    device = next(model.parameters()).device
    if "random_cuda" in tensors and device.type == "cuda":
        torch.cuda.set_rng_state(tensors["random_cuda"], device)


def write_checkpoint(path: Path, head: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write a head and tensors as one file with a digest of both, whole or not at all."""
    copies = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    metadata = {"run": json.dumps(head | {"sha256": _digest(head, copies)})}
    with atomic_write(path) as part:
        try:
            save_file(copies, part, metadata=metadata)
        except SafetensorError as error:  # such as a full disk
            raise OSError(str(error)) from error


def _weights(model: PathModel) -> dict[str, Tensor]:
    """Parameters without repeats (tied ones are one) and persistent buffers."""
    persistent = model.state_dict().keys()
    buffers = {k: v for k, v in model.named_buffers() if k in persistent}
    return dict(model.named_parameters()) | buffers


def _digest(head: dict, tensors: dict[str, Tensor]) -> str:
    """SHA-256 of everything in a checkpoint: safetensors itself would not notice a flipped bit."""
    parts = [json.dumps(head, sort_keys=True).encode()]
    for name, value in sorted(tensors.items()):
        parts.append(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        parts.append(value.reshape(-1).view(torch.uint8).numpy().data)
    return sha256(*parts)


def read_checkpoint(path: Path) -> tuple[dict, dict[str, Tensor]]:
    """Return a checkpoint's head and its tensors on the CPU.

    Raises:
        DataFileError: the file is missing, damaged, or no checkpoint of this package.
    """
    try:
        with safe_open(path, framework="pt") as file:
            head = json.loads(file.metadata()["run"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            checksum = head.pop("sha256", None)
            if checksum != _digest(head, tensors):
                raise ValueError("it fails its checksum")
            return head, tensors
    except FileNotFoundError:
        raise DataFileError(f"{path} is missing: train the model first") from None
    except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
        raise DataFileError(
            f"{path} is no whole checkpoint ({error}): delete it to train anew"
        ) from error


@torch.no_grad()
def load_weights(model: PathModel, tensors: dict[str, Tensor]) -> None:
    """Copy a checkpoint's `model.*` tensors into a model of the same shape."""
    for name, value in _weights(model).items():
        stored = tensors.get(f"model.{name}")
        if stored is None or stored.shape != value.shape:
            message = f"the checkpoint does not fit the model at {name}: delete it to train anew"
            raise DataFileError(message)
        value.copy_(stored)


def load_trained(folder: Path, graph, device: torch.device | str = "cpu") -> PathModel:
    """Rebuild the model a training folder holds, with its trained weights, in evaluation mode."""
    head, tensors = read_checkpoint(folder / "checkpoint.safetensors")
    if head["identity"]["dataset"]["graph"] != graph.fingerprint:
        message = f"{folder} was trained on another graph than {graph!r}: load that graph, or "
        raise DataFileError(f"{message}delete the folder to train anew")
    model = build(head["identity"]["model"].pop("model"), graph, **head["identity"]["model"])
    load_weights(model, tensors)
    return model.to(device).eval()


def load_history(folder: Path) -> pd.DataFrame:
    """Return the evaluations of a training folder, one row each."""
    return pd.DataFrame(read_sealed(folder / "history.json", "training")["history"])
