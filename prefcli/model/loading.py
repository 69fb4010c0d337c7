"""The model: its config, its weights, or fresh weights made from the config."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers import set_seed as seed_everything

from prefcli.errors import Problem, RecipeError, UnreachableError
from prefcli.hub.cache import TOKENIZER, missing_files, offline
from prefcli.model.quantization import quantized
from prefcli.model.remote_code import from_config_kwargs, from_pretrained_kwargs
from prefcli.recipe.paths import looks_like_path
from prefcli.recipe.sections import Model


@contextmanager
def loading(options: Model, what: str, where: str = "model") -> Iterator[None]:
    """Turn the libraries' ways of saying "not there" into an error about the recipe's `where`."""
    path = Path(options.name_or_path).expanduser()
    if path.is_dir() and options.revision is not None:
        raise RecipeError(
            Problem(
                "a local folder has no revisions", path=f"{where}.revision", hint="leave it out"
            )
        )
    if missing_folder(options.name_or_path):
        raise RecipeError(
            Problem(
                f"no such folder: {options.name_or_path}",
                path=f"{where}.name_or_path",
                hint="if an earlier stage writes it, run that first; paths are relative to where "
                "prefcli is run",
            )
        )
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError) as error:
        if offline() and not path.exists():
            lacking = _lacking(options)
            # Without its files, transformers puts a tokenizer together from nothing, and fails.
            if isinstance(error, OSError) or (what == "tokenizer" and TOKENIZER in lacking):
                raise _unreachable(options, where, lacking) from None
        text = str(error).strip()
        lines = text.splitlines() or [type(error).__name__]
        raise RecipeError(
            Problem(
                f"the {what} of {options.name_or_path} can't be loaded: {lines[0]}",
                path=f"{where}.name_or_path",
                hint=_hint(text, path),
            )
        ) from None


def _lacking(options: Model) -> list[str]:
    return missing_files(options.name_or_path, options.revision, weights=options.init != "random")


def _unreachable(options: Model, where: str, lacking: list[str]) -> UnreachableError:
    return UnreachableError(
        Problem(
            f"the hub can't be asked for {options.name_or_path}, and the cache lacks "
            f"{', '.join(lacking) or 'something of it'}",
            path=f"{where}.name_or_path",
            hint="if that is a folder which an earlier stage writes, run that first; else "
            "`prefcli download RECIPE` fills the cache where there is a network",
        )
    )


def absolute_name(name: str) -> str:
    """As an adapter should name its base: a folder by its whole path, a hub id as it is."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.is_dir() else name


def missing_folder(name: str) -> bool:
    """Is this a path that is not there, rather than a hub id?"""
    return looks_like_path(name) and not Path(name).expanduser().is_dir()


def _hint(text: str, path: Path) -> str | None:
    if any((path / "model" / f).is_file() for f in ("config.json", "adapter_config.json")):
        return f"this is a run folder; its model is {path / 'model'}"
    if not path.exists() and path.parent != Path() and path.parent.is_dir():
        return f"if a folder was meant: there is a {path.parent} here, but no {path}"
    if "gated" in text or "401" in text:
        return "log in with `hf auth login`, and accept the model's terms on the hub"
    if "connect" in text or "offline" in text or "internet" in text:
        return "the hub can't be reached; name a local folder, or fill the cache beforehand"
    if "trust_remote_code" in text:
        return (
            "it comes with Python code of its own; if you have read it, write "
            "model.trust_remote_code: true and, for the hub, model.revision: COMMIT"
        )
    return None


def load_config(options: Model, where: str = "model") -> PretrainedConfig:
    """The architecture, without weights. Raises RecipeError. Takes plain models (see start.py)."""
    with loading(options, "config", where):
        return AutoConfig.from_pretrained(options.name_or_path, **from_pretrained_kwargs(options))


def load_model(
    options: Model, dtype: torch.dtype, seed: int, where: str = "model"
) -> PreTrainedModel:
    """The weights on the CPU in `dtype`, or, with init: random, made from the config and `seed`."""
    attention: dict[str, Any] = (
        {}
        if options.attn_implementation == "auto"
        else {"attn_implementation": options.attn_implementation}
    )
    name = absolute_name(options.name_or_path)
    with loading(options, "model", where):
        if options.init == "random":
            config = AutoConfig.from_pretrained(name, **from_pretrained_kwargs(options))
            seed_everything(seed)
            model = AutoModelForCausalLM.from_config(
                config, dtype=dtype, **from_config_kwargs(config, options), **attention
            )
            model.config._name_or_path = name
            with suppress(OSError):
                model.generation_config = GenerationConfig.from_pretrained(name)
            return model
        return AutoModelForCausalLM.from_pretrained(
            name,
            **from_pretrained_kwargs(options),
            dtype=dtype,
            use_safetensors=True,
            **attention,
            **quantized(options, dtype),
        )


def check_weights(options: Model, where: str = "model") -> None:
    """Is there a weights file to load, and in safetensors?

    The hub is not asked; without a network, its cache has to do.
    """
    path = Path(options.name_or_path).expanduser()
    if options.init == "random":
        return
    if not path.is_dir():
        if offline() and not missing_folder(options.name_or_path):
            found = _lacking(options)
            if any(file.startswith("model") for file in found):
                raise _unreachable(options, where, found)
        return
    if any(path.glob("*.safetensors")):
        return
    pickled = any(path.glob("*.bin"))
    raise RecipeError(
        Problem(
            f"{options.name_or_path} holds no .safetensors file"
            + (", only pickled weights, which can run code" if pickled else ""),
            path=f"{where}.name_or_path",
            hint="convert them with transformers' save_pretrained, on a machine you can spare"
            if pickled
            else "to start from fresh weights, write model.init: random"
            if where == "model"
            else "name a folder that holds a model, as a run's model/",
        )
    )


def empty_model(config: PretrainedConfig, options: Model) -> PreTrainedModel:
    """The modules without memory behind them, for counting and naming."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, **from_config_kwargs(config, options))


@torch.no_grad()
def weights_digest(model: torch.nn.Module) -> str:
    """Of names, shapes and a thousand values of each weight: other weights, another value.

    The same in float32 and in bfloat16, so that a run may go on on another machine.
    """
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // 1000)].to(torch.bfloat16).cpu().contiguous()
        found.update(f"{name} {tuple(tensor.shape)}".encode())
        found.update(sample.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def count_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """(all, trainable) parameters."""
    every = list(model.parameters())
    return sum(p.numel() for p in every), sum(p.numel() for p in every if p.requires_grad)
