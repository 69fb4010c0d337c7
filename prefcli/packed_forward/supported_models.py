"""Architectures for which the packed forward is exact: a list, because a wrong guess is silent.

A model outside it may compute something else from a packed row without a word: recurrent layers run
on from one row into the next, chunked attention counts from the packed row's start, some ignore the
attention function they are given (stablelm, nemotron), or cap their logits.
"""

from __future__ import annotations

from transformers import PretrainedConfig, PreTrainedModel

from prefcli.recipe.compatibility import SHARDED, Strategy

FAMILIES = frozenset(
    (
        "apertus",
        "arcee",
        "cohere",
        "cohere2",
        "cwm",
        "ernie4_5",
        "exaone4",
        "gemma",
        "gemma3_text",
        "glm",
        "glm4",
        "glm4_moe",
        "gpt2",
        "gpt_bigcode",
        "gpt_neox",
        "granite",
        "granitemoe",
        "helium",
        "hunyuan_v1_dense",
        "llama",
        "ministral",
        "ministral3",
        "mistral",
        "mixtral",
        "olmo",
        "olmo2",
        "olmo3",
        "opt",
        "phi",
        "phi3",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_moe",
        "seed_oss",
        "smollm3",
        "starcoder2",
    )
)
"""transformers' model types: full attention or sliding windows. Each is in a test."""


def reason_against(model: PreTrainedModel, strategy: Strategy) -> str | None:
    """Why trl's own forward is taken instead; None where there is no reason.

    strategy: how the model is spread over processes.
    """
    return reason_against_config(model.config, model.config._attn_implementation, strategy)


def reason_against_config(
    model_config: PretrainedConfig, attention: str, strategy: Strategy
) -> str | None:
    """The same of a model that is not loaded; attention: an implementation's name."""
    config = model_config.get_text_config()
    kind = config.model_type
    if kind not in FAMILIES:
        return f"{kind} is not among the architectures it is known to be exact for"
    if config is not model_config:
        return f"{model_config.model_type} reads more than text"
    if attention != "sdpa":
        return f"model.attn_implementation is {attention}, and only sdpa knows about it"
    if strategy in SHARDED and strategy != "fsdp2":
        return f"{strategy} shards the output projection"
    if getattr(config, "output_router_logits", False):
        return "the experts' balancing loss counts every token of the padded batch"
    if getattr(config, "final_logit_softcapping", None):
        return "the logits are capped"
    return None
