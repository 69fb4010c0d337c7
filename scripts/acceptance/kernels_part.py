"""Attention and head against float64, forward and backward; and what a run really calls."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from scripts.acceptance import adapter
from scripts.acceptance.rows import Sheet
from scripts.acceptance.setting import Setting

_WORSE = 1.3
"""Times SDPA's own error."""
_NOISE = 1e-4


def run(sheet: Sheet, setting: Setting) -> None:
    for heads, key_heads, width in ((8, 8, 64), (8, 2, 64), (8, 1, 64), (4, 2, 128), (2, 2, 256)):
        name = f"llama, {heads}/{key_heads} heads of {width}"
        overrides = {
            "num_attention_heads": heads,
            "num_key_value_heads": key_heads,
            "head_dim": width // 8 if setting.quick else width,
        }
        sheet.run(name, _attention, sheet, setting, "llama", overrides, False)
        if setting.quick:
            break
    window = {"sliding_window": 16, "num_attention_heads": 8, "num_key_value_heads": 2}
    sheet.run("mistral, a window", _attention, sheet, setting, "mistral", window, False)
    full = {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64}
    sheet.run("llama, float32 in autocast", _attention, sheet, setting, "llama", full, True)
    sheet.run("head, float32", _head, sheet, setting, torch.float32)
    sheet.run("head, bf16", _head, sheet, setting, torch.bfloat16)
    for name, sections in _CALLS.items():
        if setting.quick and name != "LoRA":
            continue
        if name == "QLoRA" and (setting.cpu or find_spec("bitsandbytes") is None):
            continue  # as the part qlora says
        sheet.run(f"calls, {name}", _calls, sheet, setting, name, sections, needs=8)


def _model(setting: Setting, family: str, overrides: dict[str, Any]) -> PreTrainedModel:
    width = 64 if setting.quick else 512
    config = CONFIG_MAPPING[family](
        vocab_size=512 if setting.quick else 4096,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=2,
        **overrides,
    )
    torch.manual_seed(0)
    with setting.device:
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=2.0 / width**0.5)
                else:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return model.train()


def _batch(setting: Setting, vocabulary: int) -> dict[str, torch.Tensor]:
    """Pairs as trl lays them, all chosen before all rejected: shared prompts of several lengths, an
    answer of one token, one pair that is the same twice."""
    draw = torch.Generator().manual_seed(1)

    def tokens(count: int) -> torch.Tensor:
        return torch.randint(3, vocabulary, (count,), generator=draw)

    big = 1 if setting.quick else 4
    shapes = [(40 * big, 9, 30 * big), (7, 1, 15), (21 * big, 25 * big, 25 * big), (90, 64, 3)]
    prompts = [tokens(prompt) for prompt, _, _ in shapes]
    sides = [[tokens(shape[side]) for shape in shapes] for side in (1, 2)]
    sides[1][2] = sides[0][2]
    rows = [(p, a) for side in sides for p, a in zip(prompts, side, strict=True)]
    length = max(len(p) + len(a) for p, a in rows)
    ids = torch.full((len(rows), length), 2)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for at, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        ids[at, :end] = torch.cat([prompt, answer])
        mask[at, :end] = 1
        labels[at, len(prompt) : end] = answer
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return {name: values.to(setting.device) for name, values in batch.items()}


def _gradients(model: PreTrainedModel, scores: torch.Tensor) -> torch.Tensor:
    """Return the gradients of a sum with a random weight per token, as one vector of float64."""
    draw = torch.Generator().manual_seed(7)
    weights = torch.randn(scores.shape, generator=draw).to(scores.device)
    model.zero_grad()
    (scores * weights).sum().backward()
    parts = [p.grad.flatten().double() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return torch.cat(parts)


def _truth(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Compute log-probabilities from all logits, without code of trl or prefcli."""
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    labels = batch["labels"][:, 1:]
    scored = labels != -100
    logs = logits[:, :-1].log_softmax(-1)
    label_logs = logs.gather(2, labels.clamp(min=0)[..., None]).squeeze(2)
    return torch.where(scored, label_logs, torch.zeros_like(label_logs))


def _attention(
    sheet: Sheet, setting: Setting, family: str, overrides: dict[str, Any], autocast: bool
) -> None:
    model = _model(setting, family, overrides)
    batch = _batch(setting, model.config.vocab_size)
    scored = batch["labels"][:, 1:] != -100
    if not autocast:
        model = model.bfloat16()
    truth = _truth(exact := adapter.exact(model), batch)
    expected = _gradients(exact, truth)
    truth = truth.detach()[scored]
    names = [adapter.SEGMENTS] if setting.cpu else [adapter.FLASH, adapter.SEGMENTS]
    errors: dict[str | None, tuple[float, float]] = {}
    for attention in (None, *names):
        with torch.autocast(setting.device.type, torch.bfloat16, enabled=autocast):
            got = adapter.scores(model, batch, attention)
        gradients = _gradients(model, got)
        off = (got.detach()[scored].double() - truth).pow(2).mean().sqrt()
        errors[attention] = (
            float(off),
            float((gradients - expected).norm() / expected.norm()),
        )
    sheet.note("logits to", float(truth.abs().max()))
    sheet.note("SDPA's error, nats and share", "{:.2g}, {:.2g}".format(*errors[None]))
    for attention in names:
        for figure, mine, sdpa_error in zip(
            ("forward", "backward"), errors[attention], errors[None], strict=True
        ):
            sheet.at_most(f"{attention} {figure}, of SDPA's", mine / (sdpa_error + _NOISE), _WORSE)


def _head(sheet: Sheet, setting: Setting, dtype: torch.dtype) -> None:
    """Triton's against torch's and float64."""
    rows, width, vocabulary = (40, 64, 500) if setting.quick else (700, 1024, 32_001)
    torch.manual_seed(0)
    with setting.device:
        hidden = torch.randn(rows, width).to(dtype)
        projection = torch.nn.Linear(width, vocabulary, bias=False)
        projection.weight.data.normal_(std=4 / width**0.5)
        targets = torch.randint(0, vocabulary, (rows,))
        weights = torch.randn(rows)
    projection.to(dtype)
    hidden.requires_grad_()

    def both(made: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gradients = torch.autograd.grad(
            (made * weights).sum(), (hidden, projection.weight), retain_graph=False
        )
        return made.detach().double(), torch.cat([f.flatten().double() for f in gradients])

    logits = hidden.double() @ projection.weight.double().T
    right = both(logits.log_softmax(1).gather(1, targets[:, None]).squeeze(1))
    plain = (hidden @ projection.weight.T).float()
    simple = both(plain.log_softmax(1).gather(1, targets[:, None]).squeeze(1))
    for name, by_torch in (("trl's kernels", False), ("Head", True)):
        mine = both(adapter.head(hidden, projection, targets, by_torch=by_torch))
        for figure, got, right_one, simple_one in zip(
            ("forward", "backward"), mine, right, simple, strict=True
        ):
            off = float((got - right_one).norm() / right_one.norm())
            usual = float((simple_one - right_one).norm() / right_one.norm())
            if dtype == torch.float32:
                sheet.at_most(f"{name}, {figure}", off, 1e-3)
            else:
                sheet.at_most(f"{name}, {figure}, of plain bf16's", off / (usual + 1e-5), _WORSE)


_CALLS: dict[str, dict[str, Any]] = {
    "full": {},
    "LoRA": {"lora": {"rank": 8}},
    "QLoRA": {"lora": {"rank": 8}, "model": {"quantization": "4bit"}},
    "float32": {"model": {"dtype": "float32"}},
    "full, checkpointing": {"training": {"gradient_checkpointing": True}},
}


def _calls(sheet: Sheet, setting: Setting, name: str, sections: dict[str, Any]) -> None:
    """Profile two steps of the trainer of a run."""
    folder = setting.work / f"calls {name}".replace(" ", "-").replace(",", "")
    rows = setting.drawn("T", 16, "calls", (10, 60), (5, 30))
    training = {
        "global_batch_size": 8,
        "per_device_train_batch_size": 8,
        "max_steps": 1 if setting.quick else 2,
        "gradient_checkpointing": False,
        **sections.get("training", {}),
    }
    file = setting.recipe(
        folder,
        setting.model("T"),
        setting.written(folder / "rows.jsonl", rows),
        dpo={},
        **{**sections, "training": training},
    )
    trainer = adapter.trainer_of(file, "dpo")
    with profile(activities=[ProfilerActivity.CPU]) as events:
        trainer.train()
    calls = {
        e.key: e.count
        for e in events.key_averages()
        if re.search("varlen|flash|sdp|scaled_dot", e.key)
    }
    flash = sum(
        count for key, count in calls.items() if "_varlen_attn" in key and "backward" not in key
    )
    speed = adapter.speed_of(trainer)
    sheet.note("run.json", json.dumps(speed))
    sheet.note("operators", ", ".join(f"{key} {count}" for key, count in sorted(calls.items())))
    in_bf16 = not setting.cpu and name != "float32"
    if in_bf16:
        sheet.equal("attention", speed.get("attention"), adapter.FLASH)
        sheet.at_least("calls of flash attention", flash, setting.shapes["T"].layers * 4)
    sheet.equal("forward passes that were trl's own", speed.get("stock_calls"), 0)
