"""The architectures for which the packed forward is exact.

Other models may silently compute something else from a packed row: recurrent layers continue from
one row into the next, chunked attention counts from the start of the packed row, and some models
ignore the attention function (stablelm, nemotron) or cap their logits.
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
"""Model types of transformers with full attention or sliding windows; each one is tested."""


def reason_against(model: PreTrainedModel, strategy: Strategy) -> str | None:
    """Return why the packed forward does not support a model; None if it does.

    strategy: the distributed strategy of the run.
    """
    return reason_against_config(model.config, model.config._attn_implementation, strategy)


def reason_against_config(
    model_config: PretrainedConfig, attention: str, strategy: Strategy
) -> str | None:
    """Return `reason_against` from a configuration, before the model is loaded.

    attention: the name of its attention implementation.
    """
    config = model_config.get_text_config()
    kind = config.model_type
    if kind not in FAMILIES:
        return f"it is not verified for model type {kind}"
    if config is not model_config:
        return f"{model_config.model_type} is multimodal"
    if attention != "sdpa":
        return f"model.attn_implementation is {attention}, and it needs sdpa"
    if strategy in SHARDED and strategy != "fsdp2":
        return f"{strategy} shards the output projection"
    if getattr(config, "output_router_logits", False):
        return "the experts' balancing loss counts every token of the padded batch"
    if getattr(config, "final_logit_softcapping", None):
        return "the logits are capped"
    return None
