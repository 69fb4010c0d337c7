"""The safetensors files of a model or an adapter, compared with the modules that they fill.

transformers and peft fill a tensor that a file lacks with random numbers, and only warn. The checks
here read the headers of the files, not the weights.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.modeling_utils import load_state_dict

from prefcli.errors import Problem, RecipeError
from prefcli.hub.cache import ADAPTER_WEIGHTS, WEIGHTS, WEIGHTS_INDEX
from prefcli.model.lora import empty_adapter
from prefcli.model.reward_head import is_reward_model, without_new_head
from prefcli.text import first_line

_LFS_POINTER = b"version https://git-lfs"
_NAMES_SHOWN = 3
_MOST_READ = 4 * 2**30
"""Bytes of weights whose values are read before a run loads them."""

_WIDE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class WeightFiles:
    """The headers of the files that hold one model or adapter."""

    folder: str
    tensors: dict[str, torch.Tensor]
    """Name: a tensor on the meta device."""
    file_of: dict[str, str]
    """Name of a tensor: name of its file."""

    @classmethod
    def read(cls, folder: Path, names: Sequence[str], where: str) -> WeightFiles:
        """Read the headers of some files. Raises RecipeError naming a file that is damaged."""
        tensors: dict[str, torch.Tensor] = {}
        file_of: dict[str, str] = {}
        for name in names:
            header = _read_header(folder / name, where)
            tensors |= header
            file_of |= dict.fromkeys(header, name)
        return cls(str(folder), tensors, file_of)

    @property
    def files(self) -> str:
        names = sorted(set(self.file_of.values()))
        return names[0] if len(names) == 1 else f"{len(names)} files"


def read_model_files(folder: Path, where: str = "model") -> WeightFiles:
    """Read the headers of model.safetensors, or of the shards in its index. Raises RecipeError."""
    if (folder / WEIGHTS).is_file():
        return WeightFiles.read(folder, [WEIGHTS], where)
    return WeightFiles.read(folder, _shards(folder, where), where)


def read_adapter_files(folder: Path, where: str = "model") -> WeightFiles:
    """Read the header of an adapter's weights. Raises RecipeError."""
    return WeightFiles.read(folder, [ADAPTER_WEIGHTS], where)


def check_values(weights: WeightFiles, where: str = "model") -> None:
    """Raise RecipeError if a tensor has values that are not finite.

    Files that together exceed a few GiB are not read: the run checks their values as it loads them.
    """
    paths = sorted({Path(weights.folder) / name for name in weights.file_of.values()})
    if sum(path.stat().st_size for path in paths) > _MOST_READ:
        return
    for path in paths:
        with safe_open(path, framework="pt") as file:
            tensors = ((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118
            check_finite(tensors, str(path), where)


def has_model_files(folder: Path) -> bool:
    """Check for the files that transformers loads: one file of weights, or an index of several."""
    return (folder / WEIGHTS).is_file() or (folder / WEIGHTS_INDEX).is_file()


def _shards(folder: Path, where: str) -> list[str]:
    """Return the files that the index lists. Raises RecipeError if one is missing or elsewhere."""
    index = folder / WEIGHTS_INDEX
    try:
        content = json.loads(index.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(index, f"can't be read: {first_line(error)}", where) from None
    parts = content if isinstance(content, dict) else {}
    names = parts.get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
        raise _damaged(index, "has no weight_map that maps tensors to files", where)
    if not isinstance(parts.get("metadata"), dict):
        raise _damaged(index, "has no metadata, which transformers needs", where)
    files = sorted(set(names.values()))
    if not files:
        raise _damaged(index, "lists no files", where)
    outside = [f for f in files if Path(f).is_absolute() or ".." in Path(f).parts]
    if outside:
        raise _damaged(index, f"names a file outside its folder: {outside[0]!r}", where)
    missing = [f for f in files if not (folder / f).is_file()]
    if missing:
        raise _damaged(index, f"names files that do not exist: {_some(missing)}", where)
    return files


def _read_header(path: Path, where: str) -> dict[str, torch.Tensor]:
    try:
        with path.open("rb") as file:
            start = file.read(len(_LFS_POINTER))
        if not start:
            raise _damaged(path, "is empty", where)
        if start == _LFS_POINTER:
            raise _damaged(
                path, "is a git-lfs pointer, not the weights", where, "run `git lfs pull`"
            )
        tensors: dict[str, torch.Tensor] = load_state_dict(path, map_location="meta")
    # ValueError and RuntimeError: a dtype or a shape that torch does not have.
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise _damaged(
            path, f"is not a complete safetensors file: {first_line(error)}", where
        ) from None
    if not tensors:
        raise _damaged(path, "holds no tensors", where)
    return tensors


def _damaged(path: Path, what: str, where: str, hint: str | None = None) -> RecipeError:
    return RecipeError(
        Problem(
            f"{path} {what}",
            path=f"{where}.name_or_path",
            hint=hint or "copy or download the file again",
            code="MDL025",
        )
    )


def check_model_files(model: PreTrainedModel, weights: WeightFiles, where: str) -> list[str]:
    """Compare files with the model on the meta device that their config describes.

    Returns warnings about tensors that the model does not use. Raises RecipeError for tensors that
    are missing or have another shape or type. transformers compares, since it knows which names
    each architecture converts, ties or ignores.
    """
    # The weights of a quantized checkpoint have names and types of their own.
    if getattr(model.config, "quantization_config", None) is not None:
        _check_quantized(weights, where)
        return []
    _check_types(weights, "its config.json has no quantization_config", where)
    with library_silenced("transformers.modeling_utils"):
        _, info = type(model).from_pretrained(
            None,
            config=model.config,
            state_dict=weights.tensors,
            device_map={"": "meta"},
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    if is_reward_model(model):
        info = without_new_head(model, info)
    return check_loading_info(type(model).__name__, info, weights.folder, where, weights)


def check_loading_info(
    model: str,
    info: Mapping[str, Any],
    name: str,
    where: str,
    weights: WeightFiles | None = None,
) -> list[str]:
    """Judge what transformers reports about loading a model: warnings, or RecipeError.

    model: class of the model. name: its folder or hub id. weights: to name the files.
    """
    file_of = weights.file_of if weights is not None else {}
    problems = []
    missing, unused = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    if missing:
        others = f"; it has {_some(unused)} instead" if unused else ""
        hint = "restore the complete weights, or correct config.json if it describes another model"
        if missing == ["lm_head.weight"]:
            hint += "; for a head that is the embedding, write tie_word_embeddings: true there"
        problems.append(
            Problem(
                f"{name} lacks {_count(missing)} of {model}: {_some(missing)}{others}",
                path=f"{where}.name_or_path",
                hint=hint,
                code="MDL026",
            )
        )
    if mismatched := sorted(info["mismatched_keys"]):
        shapes = [
            f"{key} is {_shape(saved)} in {file_of.get(key, 'the file')} and {_shape(expected)} "
            "by config.json"
            for key, saved, expected in mismatched
        ]
        problems.append(_wrong_shapes(name, shapes, where))
    if problems:
        raise RecipeError(problems)
    return (
        [f"{name} has {_count(unused)} that {model} does not use: {_some(unused)}"]
        if unused
        else []
    )


def _check_quantized(weights: WeightFiles, where: str) -> None:
    """Refuse a config of quantized weights if all weights are plain numbers."""
    if weights.tensors and all(tensor.dtype in _WIDE for tensor in weights.tensors.values()):
        raise RecipeError(
            Problem(
                f"the config.json of {weights.folder} has a quantization_config, and its weights "
                "are not quantized",
                path=f"{where}.name_or_path",
                hint="remove quantization_config from the config.json, or restore the weights",
                code="MDL027",
            )
        )


def _check_types(weights: WeightFiles, why: str, where: str) -> None:
    """Refuse whole numbers and 8-bit floats, which transformers would cast without their scale."""
    wrong = [
        f"{name} is {str(tensor.dtype).removeprefix('torch.')} in {weights.file_of[name]}"
        for name, tensor in weights.tensors.items()
        if name.endswith("weight") and tensor.dtype not in _WIDE
    ]
    if wrong:
        raise RecipeError(
            Problem(
                f"{weights.folder} has {_count(wrong)} of a type for quantized weights, and {why}: "
                f"{wrong[0]}",
                path=f"{where}.name_or_path",
                hint="name a model in 16 or 32 bits",
                code="MDL027",
            )
        )


def check_adapter_files(
    base: PreTrainedModel, config: LoraConfig, weights: WeightFiles, where: str
) -> None:
    """Compare an adapter's file with its base on the meta device.

    Raises RecipeError, and what peft raises about the config.
    """
    _check_types(weights, "adapters are not quantized", where)
    rows = base.get_input_embeddings().weight.shape[0]
    _check_vocabulary(rows, weights, where)
    model = empty_adapter(base, config)
    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    shapes = [
        f"{key} is {_shape(tensor.shape)} in {weights.file_of[key]} and {_shape(module.shape)} by "
        "adapter_config.json and the base"
        for key, tensor in sorted(weights.tensors.items())
        if (module := expected.get(key)) is not None and module.shape != tensor.shape
    ]
    if shapes:
        raise RecipeError(_wrong_shapes(weights.folder, shapes, where))
    missing, unused = _compare_adapter(model, weights, expected)
    if not missing and not unused:
        return
    others = f"{'; it has' if missing else 'also has'} {_some(unused)}" if unused else ""
    lacks = f"lacks {_count(missing)}: {_some(missing)}" if missing else ""
    raise RecipeError(
        Problem(
            f"{weights.folder} is not the adapter that its adapter_config.json describes: "
            f"{weights.files} {lacks}{others}",
            path=f"{where}.name_or_path",
            hint="restore the adapter_config.json and the weights that belong together",
            code="MDL026",
        )
    )


def _compare_adapter(
    model: PeftModel, weights: WeightFiles, expected: Mapping[str, torch.Tensor]
) -> tuple[list[str], list[str]]:
    """Return the tensors that the file lacks, and those that the adapter has no place for."""
    missing = sorted(expected.keys() - weights.tensors.keys())
    unused = sorted(weights.tensors.keys() - expected.keys())
    if not missing and not unused:
        return [], []
    # Names may differ: peft converts those of earlier versions, and loads an embedding, too.
    try:
        with library_silenced("peft"), torch.device("meta"):
            result = set_peft_model_state_dict(model, dict(weights.tensors), low_cpu_mem_usage=True)
    except KeyError:  # a module to save is not in the file
        return missing, unused
    adapter = (".lora_", ".modules_to_save.", ".trainable_tokens_")
    return (
        sorted(k.replace(".default", "") for k in result.missing_keys if _has(k, adapter)),
        sorted(k.replace(".default", "") for k in result.unexpected_keys),
    )


def _has(name: str, parts: Sequence[str]) -> bool:
    return any(part in name for part in parts)


def _check_vocabulary(rows: int, weights: WeightFiles, where: str) -> None:
    """Refuse an adapter that was trained with more tokens than its base has."""
    for name, tensor in sorted(weights.tensors.items()):
        is_vocabulary = name.endswith(("embed_tokens.weight", "lm_head.weight", "wte.weight"))
        if is_vocabulary and tensor.shape[0] > rows:
            grown = tensor.shape[0]
            raise RecipeError(
                Problem(
                    f"the adapter was trained with a grown vocabulary: {name} has {grown} rows in "
                    f"{weights.folder}/{weights.file_of[name]}, and its base has {rows}",
                    path=f"{where}.name_or_path",
                    hint=f"merge it first, in Python: base.resize_token_embeddings({grown}), "
                    "PeftModel.from_pretrained(base, ADAPTER).merge_and_unload(), then save the "
                    "model with the adapter's tokenizer and name that folder",
                    code="MDL029",
                )
            )


def check_finite(tensors: Iterable[tuple[str, torch.Tensor]], name: str, where: str) -> None:
    """Raise RecipeError naming the tensors that have NaN or infinite values.

    name: the file or the model that holds them.
    """
    wrong = [key for key, tensor in tensors if not _is_finite(tensor.detach())]
    if wrong:
        raise RecipeError(
            Problem(
                f"{name} has values that are not finite in {_count(wrong)}: {_some(wrong)}",
                path=f"{where}.name_or_path",
                hint="restore the weights; training them would give NaN, at the latest when the "
                "model is saved",
                code="MDL028",
            )
        )


def _is_finite(tensor: torch.Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel() or tensor.is_meta:
        return True
    if tensor.element_size() == 1:
        tensor = tensor.float()
    low, high = tensor.aminmax()  # one pass without a copy; NaN comes through
    return bool(low.isfinite() & high.isfinite())


def _wrong_shapes(name: str, shapes: list[str], where: str) -> Problem:
    rest = f" (and {len(shapes) - 1} more)" if len(shapes) > 1 else ""
    return Problem(
        f"{name} has tensors of another shape: {shapes[0]}{rest}",
        path=f"{where}.name_or_path",
        hint="restore the config and the weights that belong together",
        code="MDL027",
    )


def _some(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + rest


def _count(names: Sequence[str]) -> str:
    return f"{len(names)} tensor{'s'[: len(names) != 1]}"


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a number"


@contextmanager
def library_silenced(library: str) -> Iterator[None]:
    """Silence a library's report of what the caller reports itself."""
    logger = logging.getLogger(library)
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled
