"""The parts of a model, such as attention, experts and vision tower, and what is trained of each.

Rows are text, so towers of other modalities and their projectors are never reached by a batch.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from prefcli.model.peft_wrapper import base_of
from prefcli.model.reward_head import output_heads
from prefcli.text import aligned

UNREACHED = ("vision tower", "audio tower", "projector")
"""Parts that no row of text reaches."""
EXPERTS = "experts"

_PARTS = (
    "embeddings",
    "attention",
    "MLP",
    EXPERTS,
    "shared experts",
    "router",
    "norms",
    "head",
    "other",
    *UNREACHED,
)
"""In the order of the table."""
_TOWERS = (
    ("vision tower", re.compile(r"vision_\w+|visual|image_tower|vqmodel")),
    ("audio tower", re.compile(r"audio_\w+|speech_\w+")),
    ("projector", re.compile(r"\w*projector|\w+_projection|embed_(vision|audio)|connector")),
)
"""The names that transformers gives to modules of other modalities (`get_encoder`)."""
_INNER = (
    ("router", re.compile(r"\w*router|shared_expert_gate")),
    (EXPERTS, re.compile(r"experts")),
    ("shared experts", re.compile(r"shared_experts?|shared_mlp")),
    ("attention", re.compile(r"\w*att(entio)?n\w*")),
    ("MLP", re.compile(r"\w*mlp|\w*ffn?|feed_forward|fc\d|fc_(in|out)")),
)


@dataclass(frozen=True)
class PartSize:
    """The parameters of one part, in three groups that add up to it."""

    trained: int = 0
    frozen: int = 0
    not_reached: int = 0
    """Of towers and projectors: they stay as they are, whether frozen or not."""


def part_sizes(model: PreTrainedModel | PeftModel) -> dict[str, PartSize]:
    """Count the parameters of each part; those of an adapter count for the part that it adapts."""
    base = base_of(model)
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for part, _, parameter in _parameters(base):
        group = 2 if part in UNREACHED else 0 if parameter.requires_grad else 1
        counts[part][group] += parameter.numel()
    return {part: PartSize(*counts[part]) for part in _PARTS if part in counts}


def table_of(sizes: Mapping[str, PartSize]) -> list[str]:
    """Return the table of parts as aligned lines."""
    columns = ["trained", "frozen", "not reached"]
    if not any(size.not_reached for size in sizes.values()):
        columns.pop()
    rows = [["", *columns]]
    for part, size in sizes.items():
        counts = [size.trained, size.frozen, size.not_reached][: len(columns)]
        rows.append([part, *(f"{count:,}" for count in counts)])
    return [f"parts: {line}" for line in aligned(rows, range(1, len(columns) + 1))]


def sizes_as_dict(sizes: Mapping[str, PartSize]) -> dict[str, dict[str, int]]:
    return {part: asdict(size) for part, size in sizes.items()}


def towers(model: nn.Module) -> list[str]:
    """Return the names of the modules that no row of text reaches, outermost only."""
    names: list[str] = []
    for name, _ in model.named_modules():
        if tower_of(name) is not None and not any(name.startswith(f"{n}.") for n in names):
            names.append(name)
    return names


def tower_of(name: str) -> str | None:
    """Return the part that a dotted name belongs to if that part is not reached, else None."""
    components = name.split(".")
    return next(
        (part for c in components for part, pattern in _TOWERS if pattern.fullmatch(c)), None
    )


def expert_parameters(model: PreTrainedModel) -> list[str]:
    """Return the parameters that hold the weights of all routed experts, as peft names them.

    Experts that are linear layers of their own are not among them: `target_modules` names those.
    """
    names = (name for part, name, p in _parameters(model) if part == EXPERTS and p.dim() == 3)
    return list(dict.fromkeys(".".join(name.split(".")[-2:]) for name in names))


def freeze_towers(model: nn.Module) -> None:
    """Freeze what no row of text reaches: it would get no gradient, for which engines wait."""
    for name, parameter in model.named_parameters():
        if tower_of(name) is not None:
            parameter.requires_grad_(False)


def _parameters(model: PreTrainedModel) -> list[tuple[str, str, nn.Parameter]]:
    """Return (part, name, parameter) of each parameter; a tied head is part of the embeddings."""
    embeddings, heads = model.get_input_embeddings(), output_heads(model)
    listed: list[tuple[str, str, nn.Parameter]] = []
    seen: set[int] = set()
    paths: dict[str, tuple[nn.Module, ...]] = {}
    for name, module in model.named_modules():
        paths[name] = (*paths.get(name.rpartition(".")[0], ()), module) if name else (module,)
        for key, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                part = tower_of(name) or _inner_part(name, paths[name], embeddings, heads)
                listed.append((part, f"{name}.{key}", parameter))
    return listed


def _inner_part(name: str, path: Sequence[nn.Module], embeddings: Any, heads: Sequence[Any]) -> str:
    """Return the part of a module of the text model. path: the modules from the root to it."""
    if any(m is embeddings or isinstance(m, nn.Embedding) for m in path):
        return "embeddings"
    if any(module is head for module in path for head in heads):
        return "head"
    for word, part in (("Norm", "norms"), ("Router", "router")):
        if any(word in type(m).__name__ for m in path):
            return part
    components = name.split(".")
    # Next to experts `gate` is their router; elsewhere it is a projection.
    children = zip(path, components, strict=False)
    if any(child == "gate" and hasattr(parent, EXPERTS) for parent, child in children):
        return "router"
    return next(
        (part for part, pattern in _INNER if any(pattern.fullmatch(c) for c in components)), "other"
    )
