"""Config and weights of a full model: loaded, quantized, or initialized from the config."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers import set_seed as seed_everything
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from prefcli.console import warn
from prefcli.errors import PrefcliError, Problem, RecipeError, UnreachableError
from prefcli.hub.cache import ADAPTER, TOKENIZER, missing_files, offline, snapshot
from prefcli.methods import Head
from prefcli.model.remote_code import from_config_kwargs, from_pretrained_kwargs
from prefcli.model.reward_head import add_reward_head, has_reward_head
from prefcli.model.weight_files import (
    WeightFiles,
    check_finite,
    check_loading_info,
    check_model_files,
    check_values,
    has_model_files,
    library_silenced,
    read_model_files,
)
from prefcli.recipe.context_length import CONTEXT_NAMES
from prefcli.recipe.paths import looks_like_path, neighbour
from prefcli.recipe.sections import Model
from prefcli.text import first_line

_JSON_FILES = {
    "config": ("config.json",),
    "generation config": ("generation_config.json",),
    "tokenizer": (
        "config.json",
        "tokenizer_config.json",
        TOKENIZER,
        "special_tokens_map.json",
        "added_tokens.json",
    ),
    "adapter": (ADAPTER, "config.json"),
    "model": ("config.json", "generation_config.json"),
}
"""What is loaded: the JSON files that it is read from."""


@contextmanager
def loading(options: Model, what: str, where: str = "model") -> Iterator[None]:
    """Turn every error of the libraries into a RecipeError about the section `where`.

    The libraries validate their files only in part, so what a broken file raises may have any type.
    """
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
    except (PrefcliError, MemoryError, torch.OutOfMemoryError):
        raise
    except BaseException as error:
        # A panic of the tokenizers library is not an Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if offline() and not path.exists():
            missing = _missing_files(options)
            # Without its files, transformers fails with an error about the tokenizer that it built.
            if isinstance(error, OSError) or (what == "tokenizer" and TOKENIZER in missing):
                raise _unreachable(options, where, missing) from None
        _check_complete(path, what, where)
        _check_json_files(path, _JSON_FILES[what], where)
        raise RecipeError(
            Problem(
                f"can't load the {what} of {options.name_or_path}: {_describe(error)}",
                path=f"{where}.name_or_path",
                hint=_hint(str(error), path),
                code="MDL002",
            )
        ) from None


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def _check_complete(folder: Path, what: str, where: str) -> None:
    """Raise RecipeError for a model folder without a config or a tokenizer."""
    if not folder.is_dir() or _hint("", folder) is not None:
        return
    lacks, hint = None, ""
    if what in ("config", "model") and not (folder / "config.json").exists():
        lacks, hint = "config.json", "copy or download the complete folder of the model"
    elif what == "tokenizer" and not any((folder / name).exists() for name in _TOKENIZER_FILES):
        lacks = "tokenizer (tokenizer.json, tokenizer.model or a vocabulary)"
        hint = f"copy that of the model it was made from, or name it in {where}.tokenizer"
    if lacks is not None:
        raise RecipeError(
            Problem(
                f"{folder} has no {lacks}",
                path=f"{where}.name_or_path",
                hint=hint,
                code="MDL034",
            )
        )


def _describe(error: BaseException) -> str:
    """Return the first line of a message; the type too, if the message is about something else."""
    text = first_line(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if text.endswith(":") and len(lines) > 1:
        text = f"{text} {lines[1]}"
    is_sentence = isinstance(error, (OSError, ValueError, ImportError))
    return text if is_sentence else f"{type(error).__name__}: {text}"


def _check_json_files(folder: Path, names: tuple[str, ...], where: str) -> None:
    """Raise RecipeError for a file that is not a JSON object."""
    for path in (folder / name for name in names):
        if not path.is_file():
            continue
        try:
            content = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            what = f"is not JSON: {first_line(error)}"
        else:
            if isinstance(content, dict):
                continue
            what = "is JSON, but not an object with keys and values"
        raise RecipeError(
            Problem(
                f"{path} {what}",
                path=f"{where}.name_or_path",
                hint="restore the file",
                code="MDL030",
            )
        )


def _missing_files(options: Model) -> list[str]:
    return missing_files(options.name_or_path, options.revision, weights=options.init != "random")


def _unreachable(options: Model, where: str, missing: list[str]) -> UnreachableError:
    path = Path(options.name_or_path)
    near = neighbour(path) if path.parent != Path() else None
    return UnreachableError(
        Problem(
            f"the hub is unreachable for {options.name_or_path}, and the cache lacks "
            f"{', '.join(missing) or 'a part of it'}",
            path=f"{where}.name_or_path",
            hint=f"did you mean {near}?"
            if near
            else "if an earlier stage writes that folder, run that stage first; otherwise run "
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


def run_folder_hint(path: Path) -> str | None:
    """Return a hint to name the model in a folder of a run; None for another folder."""
    if any((path / "model" / f).is_file() for f in ("config.json", "adapter_config.json")):
        return f"this is a run folder; name its model: {path / 'model'}"
    return None


def _hint(text: str, path: Path) -> str | None:
    if hint := run_folder_hint(path):
        return hint
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


AUTO_CLASSES: Mapping[Head, Any] = {
    "language_model": AutoModelForCausalLM,
    "reward": AutoModelForSequenceClassification,
}
"""transformers' loader of the models with each head."""

_ARCHITECTURES: Mapping[Head, Mapping[str, Any]] = {
    "language_model": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "reward": MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
}


def load_config(options: Model, where: str = "model") -> PretrainedConfig:
    """Load the config of a full model (for adapters, see base_model). Raises RecipeError."""
    with loading(options, "config", where):
        config = AutoConfig.from_pretrained(options.name_or_path, **from_pretrained_kwargs(options))
    if fault := _other_head(options, config):
        raise RecipeError(
            Problem(
                f"{options.name_or_path} is a {config.model_type} model, which {fault}",
                path=f"{where}.name_or_path",
                hint="name a model that does, such as Llama, Qwen or GPT-2",
                code="MDL032",
            )
        )
    if options.head == "language_model" and has_reward_head(config):
        raise RecipeError(
            Problem(
                f"{options.name_or_path} is a reward model, which writes no text",
                path=f"{where}.name_or_path",
                hint="name a language model; `prefcli eval` and `prefcli score --reward-model` use "
                "a reward model",
                code="MDL032",
            )
        )
    if options.head == "reward":
        if has_reward_head(config) and config.num_labels != 1:
            raise RecipeError(
                Problem(
                    f"{options.name_or_path} has {config.num_labels} labels; a reward model has "
                    "one",
                    path=f"{where}.name_or_path",
                    hint="name a language model, or a model for sequence classification with "
                    "num_labels 1",
                    code="MDL040",
                )
            )
        config.num_labels = 1
    return config


def _other_head(options: Model, config: PretrainedConfig) -> str | None:
    """Return what the model does not do, if its architecture does not have the head."""
    has_code = bool(getattr(config, "auto_map", None))
    if config.model_type in _ARCHITECTURES[options.head] or has_code:
        return None
    return {
        "language_model": "does not continue text",
        "reward": "transformers cannot give a reward head",
    }[options.head]


def context_length(config: PretrainedConfig) -> int | None:
    """Return the context of a model in tokens, by the name that its family gives it."""
    text = config.get_text_config()
    lengths = (getattr(text, name, None) for name in CONTEXT_NAMES)
    return next((length for length in lengths if isinstance(length, int) and length > 0), None)


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
    check_weights(options, where)
    with loading(options, "model", where):
        if options.init == "random":
            config = load_config(options, where)
            seed_everything(seed)
            model = AUTO_CLASSES[options.head].from_config(
                config, dtype=dtype, **from_config_kwargs(config, options), **attention
            )
            model.config._name_or_path = name
            if options.head == "reward":
                return add_reward_head(model)
            generation = load_generation_config(options, where)
            if generation is not None:
                model.generation_config = generation
            return model
        # It would warn about a new reward head.
        quiet = library_silenced("transformers.modeling_utils")
        with quiet if options.head == "reward" else nullcontext():
            model, info = AUTO_CLASSES[options.head].from_pretrained(
                name,
                **from_pretrained_kwargs(options),
                **({"num_labels": 1} if options.head == "reward" else {}),
                dtype=dtype,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # check_loading_info refuses them, by name
                output_loading_info=True,
                **attention,
                **_quantization_kwargs(options, dtype),
            )
        if options.head == "language_model":
            allow_sampling(model.generation_config)
    if options.head == "reward":
        model = add_reward_head(model, info)
    check_loading_info(type(model).__name__, info, options.name_or_path, where)
    check_finite(model.state_dict().items(), options.name_or_path, where)
    return model


def load_generation_config(options: Model, where: str = "model") -> GenerationConfig | None:
    """Load the generation config; None for a model without one. Raises RecipeError."""
    name = options.name_or_path
    with loading(options, "generation config", where):
        try:
            config = GenerationConfig.from_pretrained(name, revision=options.revision)
        except OSError:
            # transformers raises the same for a file that is not JSON.
            if (Path(name).expanduser() / "generation_config.json").is_file():
                raise
            return None  # many models have none
        if allow_sampling(config):
            _warn_of_sampling(name)
    return config


@lru_cache
def _warn_of_sampling(name: str) -> None:
    warn(
        f"generation_config.json of {name} has settings of sampling without do_sample, which "
        "transformers does not save: do_sample: true is added in model/"
    )


def allow_sampling(config: GenerationConfig) -> bool:
    """Set do_sample if the config has settings of sampling without it, and return whether it does.

    transformers loads such a config, and refuses to save it once training has added a stop token.
    Raises ValueError for other values that it would not save.
    """
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(config, name)
        ids = value if isinstance(value, list) else [value]
        if not all(i is None or type(i) is int for i in ids):
            raise ValueError(f"{name} is {value!r}; expected the id of a token")
    if config.pad_token_id is not None and config.pad_token_id < 0:
        config.pad_token_id = None  # training sets it to the tokenizer's
    try:
        config.validate(strict=True)
    except ValueError:
        if config.do_sample:
            raise
        config.do_sample = True
        config.validate(strict=True)
        return True
    return False


def _weights_folder(options: Model) -> Path | None:
    """Return the folder with all weights of a model: a local one, or a snapshot in the cache."""
    path = Path(options.name_or_path).expanduser()
    if path.is_dir():
        return path if has_model_files(path) else None
    cached = snapshot(options.name_or_path, "model", options.revision)
    return cached if cached is not None and not _missing_files(options) else None


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


def check_weights(options: Model, where: str = "model", *, values: bool = False) -> list[str]:
    """Check that the weights of a full model are complete and fit its config. Raises RecipeError.

    values: also check that they are finite, in files of a few GiB. For a hub id, what the cache has
    is checked. Returns warnings.
    """
    check_weights_exist(options, where)
    folder = None if options.init == "random" else _weights_folder(options)
    if folder is None:
        return []
    files = [(str(file), file.stat()) for file in sorted(folder.iterdir()) if file.is_file()]
    states = tuple((name, state.st_size, state.st_mtime_ns) for name, state in files)
    section = type(options)
    weights, warnings = _check_headers(section, options.model_dump_json(), folder, where, states)
    if values:
        check_values(weights, where)
    return list(warnings)


@lru_cache
def _check_headers(
    section: type[Model],
    options_json: str,
    folder: Path,
    where: str,
    _states: tuple[tuple[str, int, int], ...],
) -> tuple[WeightFiles, tuple[str, ...]]:
    """Compare the headers with the config: once a process for files that have not changed.

    A run loads the same model as policy and as reference, after the dry-run's checks.
    """
    options = section.model_validate_json(options_json)
    weights = read_model_files(folder, where)
    model = empty_model(load_config(options, where), options, where)
    with loading(options, "model", where):
        return weights, tuple(check_model_files(model, weights, where))


def check_weights_exist(options: Model, where: str = "model") -> None:
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
    if has_model_files(path):
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
            f"{options.name_or_path} has neither model.safetensors nor an index of its parts",
            path=f"{where}.name_or_path",
            hint="to start from random weights, write model.init: random"
            if where == "model"
            else "name a folder with a model, such as a run's model/",
            code="MDL001",
        )
    )


def empty_model(config: PretrainedConfig, options: Model, where: str = "model") -> PreTrainedModel:
    """Build the model on the meta device, to count and name its modules. Raises RecipeError."""
    with loading(options, "model", where), torch.device("meta"):
        return AUTO_CLASSES[options.head].from_config(config, **from_config_kwargs(config, options))


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
