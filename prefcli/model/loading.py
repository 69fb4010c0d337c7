"""Config and weights of a full model: loaded, quantized, or initialized from the config."""

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
    BitsAndBytesConfig,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers import set_seed as seed_everything

from prefcli.errors import Problem, RecipeError, UnreachableError
from prefcli.hub.cache import TOKENIZER, missing_files, offline
from prefcli.model.remote_code import from_config_kwargs, from_pretrained_kwargs
from prefcli.recipe.paths import looks_like_path
from prefcli.recipe.sections import Model
from prefcli.text import first_line


@contextmanager
def loading(options: Model, what: str, where: str = "model") -> Iterator[None]:
    """Turn the loading errors of the libraries into a RecipeError about the section `where`."""
    path = Path(options.name_or_path).expanduser()
    if path.is_dir() and options.revision is not None:
        raise RecipeError(
            Problem(
                "a local folder has no revisions",
                path=f"{where}.revision",
                hint="remove revision",
                code="MDL004",
            )
        )
    if missing_folder(options.name_or_path):
        raise RecipeError(
            Problem(
                f"no such folder: {options.name_or_path}",
                path=f"{where}.name_or_path",
                hint="if an earlier stage writes it, run that stage first; paths are relative to "
                "the working directory",
                code="MDL001",
            )
        )
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError) as error:
        if offline() and not path.exists():
            missing = _missing_files(options)
            # Without its files, transformers fails with an error about the tokenizer that it built.
            if isinstance(error, OSError) or (what == "tokenizer" and TOKENIZER in missing):
                raise _unreachable(options, where, missing) from None
        raise RecipeError(
            Problem(
                f"can't load the {what} of {options.name_or_path}: {first_line(error)}",
                path=f"{where}.name_or_path",
                hint=_hint(str(error), path),
                code="MDL002",
            )
        ) from None


def _missing_files(options: Model) -> list[str]:
    return missing_files(options.name_or_path, options.revision, weights=options.init != "random")


def _unreachable(options: Model, where: str, missing: list[str]) -> UnreachableError:
    return UnreachableError(
        Problem(
            f"the hub is unreachable for {options.name_or_path}, and the cache lacks "
            f"{', '.join(missing) or 'a part of it'}",
            path=f"{where}.name_or_path",
            hint="if an earlier stage writes that folder, run that stage first; otherwise run "
            "`prefcli download RECIPE` on a machine with a network",
            code="MDL003",
        )
    )


def absolute_name(name: str) -> str:
    """Return the absolute path of a folder, or a hub id unchanged."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.is_dir() else name


def missing_folder(name: str) -> bool:
    """Check for a path (not a hub id) that is not a folder."""
    return looks_like_path(name) and not Path(name).expanduser().is_dir()


def _hint(text: str, path: Path) -> str | None:
    if any((path / "model" / f).is_file() for f in ("config.json", "adapter_config.json")):
        return f"this is a run folder; name its model: {path / 'model'}"
    if not path.exists() and path.parent != Path() and path.parent.is_dir():
        return f"if you meant a folder: {path.parent} exists, but {path} does not"
    if "gated" in text or "401" in text:
        return "log in with `hf auth login` and accept the model's terms on the hub"
    if "connect" in text or "offline" in text or "internet" in text:
        return "name a local folder, or fill the cache with `prefcli download RECIPE`"
    if "trust_remote_code" in text:
        return (
            "read the Python code that comes with the model, then write "
            "model.trust_remote_code: true and, for the hub, model.revision: COMMIT"
        )
    return None


def load_config(options: Model, where: str = "model") -> PretrainedConfig:
    """Load the config of a full model (for adapters, see base_model). Raises RecipeError."""
    with loading(options, "config", where):
        return AutoConfig.from_pretrained(options.name_or_path, **from_pretrained_kwargs(options))


def load_model(
    options: Model, dtype: torch.dtype, seed: int, where: str = "model"
) -> PreTrainedModel:
    """Load weights on the CPU in `dtype`; with init: random, initialize them with `seed`."""
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
            **_quantization_kwargs(options, dtype),
        )


def _quantization_kwargs(options: Model, compute: torch.dtype) -> dict[str, Any]:
    """Return the arguments of from_pretrained for a base frozen in 4 or 8 bits.

    4bit is QLoRA's NF4 with double quantization (Dettmers et al. 2023, arXiv:2305.14314).
    """
    if options.quantization is None:
        return {}
    config = (
        BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
        )
        if options.quantization == "4bit"
        else BitsAndBytesConfig(load_in_8bit=True)
    )
    # Weights are quantized on their way to the device and can't move afterwards.
    device = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
    return {"quantization_config": config, "device_map": {"": device}}


def check_weights(options: Model, where: str = "model") -> None:
    """Check that there are weights in safetensors. Raises RecipeError.

    For a hub id, only the cache is checked, and only without a network.
    """
    path = Path(options.name_or_path).expanduser()
    if options.init == "random":
        return
    if not path.is_dir():
        if offline() and not missing_folder(options.name_or_path):
            missing = _missing_files(options)
            if any(file.startswith("model") for file in missing):
                raise _unreachable(options, where, missing)
        return
    if any(path.glob("*.safetensors")):
        return
    if any(path.glob("*.bin")):
        raise RecipeError(
            Problem(
                f"{options.name_or_path} has only pickled weights, which can run code, and no "
                ".safetensors file",
                path=f"{where}.name_or_path",
                hint="convert them with transformers' save_pretrained in an isolated environment",
                code="MDL005",
            )
        )
    raise RecipeError(
        Problem(
            f"{options.name_or_path} has no .safetensors file",
            path=f"{where}.name_or_path",
            hint="to start from random weights, write model.init: random"
            if where == "model"
            else "name a folder with a model, such as a run's model/",
            code="MDL001",
        )
    )


def empty_model(config: PretrainedConfig, options: Model) -> PreTrainedModel:
    """Build the model on the meta device, to count and name its modules."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, **from_config_kwargs(config, options))


@torch.no_grad()
def weights_digest(model: torch.nn.Module) -> str:
    """Digest the names, the shapes and a thousand values of each weight.

    The digest is the same in float32 and bfloat16, so that a run may resume on another machine.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // 1000)].to(torch.bfloat16).cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def count_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """Return (all, trainable) parameters."""
    parameters = list(model.parameters())
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    return sum(p.numel() for p in parameters), trainable
