"""The keys that are dropped or refused whatever the tool, each under its reason."""

from __future__ import annotations

from prefcli.recipe.migrate.rules import Drop, Refuse, Rule
from prefcli.recipe.yaml_reader import scalar

SAME_TRAINING = "it changes memory or speed, but not the result of training"
_LAUNCHER = "the launch section, torchrun or accelerate sets up distributed training"
_LOGGING = "prefcli logs to metrics.jsonl every training.logging_steps"

_DROPPED = {
    SAME_TRAINING: """
        use_liger_kernel liger_kernel_config torch_compile torch_compile_backend torchdynamo
        torch_compile_mode jit_mode_eval use_ipex dataloader_num_workers dataloader_pin_memory
        dataloader_prefetch_factor dataloader_persistent_workers eval_accumulation_steps
        torch_empty_cache_steps full_determinism activation_offloading eval_do_concat_batches
        eval_use_gather_object batch_eval_metrics precompute_ref_batch_size padding_free
        pad_to_multiple_of use_logits_to_keep use_liger_loss low_cpu_mem_usage use_cache
        enable_liger_kernel use_unsloth use_unsloth_gc upcast_layernorm compile shard_for_eval
        dataloader_main_process_only empty_device_cache_steps use_deterministic gpu_memory_limit
        flash_attn_cross_entropy flash_attn_rms_norm flash_attn_fuse_mlp flash_attn_fuse_qkv
        pad_to_sequence_len lora_mlp_kernel lora_qkv_kernel lora_o_kernel liger_rope liger_rms_norm
        liger_swiglu liger_glu_activation liger_layer_norm liger_fused_linear_cross_entropy
        liger_cross_entropy unsloth_lora_mlp unsloth_lora_qkv unsloth_lora_o cut_cross_entropy
        unsloth_cross_entropy_loss dpo_padding_free dpo_use_liger_kernel dpo_use_logits_to_keep
        xformers_attention bnb_4bit_quant_storage gradient_checkpointing_kwargs use_reentrant_gc
        use_kernels use_v1_kernels use_scattermoe use_sonicmoe experts_implementation tiled_mlp
        fused_attn_kernel liger_rms_norm_gated flex_attn_compile_kwargs
        experimental_skip_move_to_device
    """,
    _LAUNCHER: """
        ddp_timeout ddp_find_unused_parameters ddp_backend ddp_bucket_cap_mb ddp_broadcast_buffers
        dp_shard_size dp_replicate_size
        deepspeed fsdp fsdp_config fsdp_version fsdp_min_num_params local_rank ddp device_map
        use_cpu
        fsdp_transformer_layer_cls_to_wrap fsdp_final_state_dict_type no_cuda use_mps_device
        ray_run_name ray_storage_path ray_num_workers ray_init_kwargs ray_scope use_ray launcher
        resources_per_worker placement_strategy world_size nccl_default_timeout_minutes
    """,
    _LOGGING: """
        log_level log_level_replica logging_strategy logging_first_step logging_dir disable_tqdm
        logging_nan_inf_filter log_on_each_node include_tokens_per_second project trackio_space_id
        include_num_input_tokens_seen include_inputs_for_metrics include_for_metrics plot_loss
        skip_memory_metrics compute_accuracy dep_log_level include_performance_metrics telemetry
        include_alternative_mfu_metrics log_model_summary profiler eval_table_size profiler_steps
        eval_max_new_tokens eval_table_max_new_tokens include_tkps
    """,
    "set it in the tracker's environment variable, such as WANDB_PROJECT": """
        wandb_entity wandb_watch wandb_log_model wandb_mode mlflow_tracking_uri swanlab_project
        swanlab_run_name swanlab_mode swanlab_workspace swanlab_description
        swanlab_experiment_name swanlab_log_completions swanlab_completion_log_interval
        swanlab_completion_max_buffer swanlab_log_model comet_project_name comet_experiment_key
        hf_mlflow_log_artifacts
    """,
    "log in with `hf auth login`, or export HF_TOKEN": """
        hub_token push_to_hub_token hf_use_auth_token use_auth_token hf_hub_token ms_hub_token
        om_hub_token push_to_hub_organization
    """,
    "datasets caches the converted rows": """
        overwrite_cache preprocessing_only preprocessing_batch_size tokenized_path buffer_size
        dataset_prepared_path push_dataset_to_hub dataset_keep_in_memory
    """,
    "prefcli resumes its own runs and never overwrites another": """
        overwrite_output_dir resume_from_checkpoint ignore_data_skip auto_resume_from_checkpoints
        try_resume_from_last_checkpoint
    """,
    "the precision follows the device": """
        tf32 bf16_full_eval fp16_full_eval half_precision_backend fp16_opt_level compute_dtype
    """,
    "transformers reads it from the model's files": """
        model_type tokenizer_type tokenizer_use_fast tokenizer_legacy is_llama_derived_model
        is_mistral_derived_model is_qwen_derived_model is_falcon_derived_model
    """,
    "padding is masked by position, whatever its token": """
        pad_token padding_value label_pad_token_id tokenizer_pad_token
    """,
    "trl 1.x does not read it": """
        num_of_sequences chars_per_token dataset_batch_size force_use_ref_model model_adapter_name
        ref_adapter_name ignore_bias_buffers
    """,
    "only generation uses it": """
        top_k min_p max_new_tokens do_sample generation_max_length generation_num_beams
    """,
    "prefcli samples with transformers": """
        use_vllm vllm_mode vllm_server_base_url vllm_server_host vllm_server_port
        vllm_server_timeout vllm_group_port vllm_gpu_memory_utilization vllm_max_model_length
        vllm_tensor_parallel_size vllm_model_impl vllm_enable_sleep_mode
        use_transformers_continuous_batching transformers_continuous_batching_config
        use_transformers_paged cache_implementation ds3_gather_for_generation
    """,
    "completions.jsonl has the completions of each evaluation": """
        log_completions num_completions_to_print log_unique_prompts log_multimodal
    """,
    "an evaluation samples one completion of each prompt": "num_generations_eval",
    "completions are new in each step, so that no ratio is clipped": "epsilon epsilon_high",
    "the section of the method replaces it": "stage rl trainer_type reward_model num_labels",
    "`prefcli METHOD` trains": "do_train do_predict",
    "evaluation runs whenever data.eval is given": "do_eval eval_on_start eval_delay",
    "prefcli reads the columns that the method needs": "remove_unused_columns label_names",
    "prefcli has one seed for everything": "data_seed",
    "prefcli's losses are means over all devices": "average_tokens_across_devices",
    "checkpoints include the optimizer state, so that runs can resume": "save_only_model",
    "weights are always saved as safetensors": "save_safetensors save_on_each_node",
    "a preempted run saves a checkpoint": "enable_jit_checkpoint",
    "prefcli always saves the model": "save_final_model peft_save_mode",
    "`samples` writes answers during training": "generate_during_eval",
    "prefcli's 4bit quantizes twice, as QLoRA does": "use_bnb_nested_quant double_quantization",
    "the task is always causal language modeling": "lora_task_type is_encoder_decoder",
    "data.max_length bounds prompt and completion": "max_prompt_length",
    "prefcli truncates long rows at the end and counts them": "excess_length_strategy",
    "prefcli always shuffles rows": "shuffle_dataset",
    "evaluation rows are packed like training rows": "eval_packing eval_sample_packing",
    "only sync_ref_model uses it": "ref_model_mixup_alpha ref_model_sync_steps",
    "prefcli uses the tokenizer's chat template": "enable_thinking",
    "HF_HOME sets the cache folder": "cache_dir",
    "prefcli stops if a loss is not finite": "loss_watchdog_threshold loss_watchdog_patience",
    "--dry-run checks the output folder": "save_first_step debug",
    "prefcli is always strict": "strict",
}
"""Reasons, each with the keys that are dropped for it."""

_DROPPED_WITH_NOTE = {
    "prefcli shuffles rows and does not group them by length": "group_by_length length_column_name",
    "prefcli also trains on the last, smaller batch of an epoch": "dataloader_drop_last",
    "prefcli does not report to this tracker": "use_swanlab use_comet",
    "prefcli does not generate in evaluations": "predict_with_generate",
    "prefcli trains on the end of a turn if the chat template marks it as the assistant's": (
        "eot_tokens"
    ),
    "prefcli uses transformers' tokenizer and chat template": "tokenizer_use_mistral_common",
    "prefcli does not add rows without tokens to the embedding": "resize_token_embeddings_to_32x",
}
"""The same where the results of the run differ slightly, which the recipe says."""

_REFUSED = {
    "prefcli does not have NEFTune": "neftune_noise_alpha",
    "prefcli's SFT loss has no label smoothing": "label_smoothing_factor",
    "prefcli never changes the batch size": "auto_find_batch_size",
    "prefcli's optimizers have no other settings": "optim_args",
    "prefcli has one optimizer for all modules": "optim_target_modules",
    "prefcli configures accelerate itself": "parallelism_config",
    "write optim: adafactor": "adafactor",
    "prefcli quantizes with bitsandbytes; write bnb": "quantization_method=bnb,bitsandbytes",
    "the only 4bit format is nf4": "bnb_4bit_quant_type=nf4 quantization_type=nf4",
    "prefcli passes no other arguments to the model": (
        "model_init_kwargs ref_model_init_kwargs model_kwargs model_config rope_scaling"
    ),
    "the weights are random; write model.init: random": "load_pretrained_weights=true",
    "prefcli trains the LoRA layers only": "lora_bias=none",
    "prefcli initializes adapters to zero": "pissa_init lora_init_weights=default loftq_config",
    "peft sets it for Conv1D layers": "lora_fan_in_fan_out",
    "prefcli has one learning rate for all weights": (
        "loraplus_lr_ratio embedding_lr embedding_lr_scale"
    ),
    "prefcli does not stream data": "dataset_streaming streaming",
    "prefcli samples completions once for each step": (
        "num_iterations=1 steps_per_generation generation_batch_size"
    ),
    "prefcli samples from the policy's own probabilities": (
        "repetition_penalty=1.0,1 generation_kwargs vllm_structured_outputs_regex"
    ),
    "prefcli has one judge; write one that adds up the scores": "reward_weights",
    "prefcli takes the coefficient from the model's config": "router_aux_loss_coef",
    "prefcli truncates at the end": "truncation_mode=keep_start",
    "prefcli's packing does not split rows": "packing_strategy=bfd,ffd",
    "prefcli never updates the reference model": "sync_ref_model",
    "prefcli's dpo always has a reference; use simpo or orpo": "reference_free",
    "prefcli does not weight pairs by the policy (WPO)": "use_weighting dpo_use_weighting",
    "prefcli disables dropout in preference training": "disable_dropout=true",
    "trl has no such SFT term; write cpo_alpha for the one that trl has": "sft_weight",
    "prefcli does not change the tokenizer; save it with these tokens and write model.tokenizer": (
        "resize_vocab add_special_tokens tokens added_tokens_overrides"
    ),
    "prefcli does not have this attention": "shift_attn",
    "prefcli does not add a system message; add it to the data": (
        "default_system default_system_message"
    ),
    "prefcli concatenates its sources": "mix_strategy=concat",
    "prefcli's sft trains on every assistant turn of a conversation": "mask_history",
    "trl's sigmoid loss has no label smoothing; use pref_loss: robust": "dpo_label_smoothing",
    "prefcli does not add a BCO term to another loss": "pref_bco_weight",
    "an adapter is the reference itself; write its folder as ref_model": "ref_model_adapters",
    "the reference is quantized like the policy": "ref_model_quantization_bit",
    "prefcli always shuffles rows": "disable_shuffling shuffle_merged_datasets=true",
    "prefcli has other optimizers": "use_galore use_badam use_apollo use_muon use_adam_mini",
    "prefcli does not add layers (LLaMA Pro)": "use_llama_pro",
    "prefcli trains on text only": (
        "image_max_pixels video_max_pixels freeze_vision_tower processor_type is_multimodal"
    ),
    "prefcli trains all layers": "unfrozen_parameters freeze_layers",
    "prefcli has its own metrics": "metrics_function",
    "prefcli does not have ReLoRA": "relora relora_steps",
    "prefcli does not have GPTQ": "gptq",
    "prefcli quantizes linear layers only": "quantize_moe_experts",
    "prefcli does not train for a quantized model (QAT)": "qat",
    "prefcli shards weights and data only; other shards change the number of rows of a step": (
        "tensor_parallel_size context_parallel_size expert_parallel_size"
    ),
    "prefcli does not remove repeated rows": "dataset_exact_deduplication",
    "prefcli does not pretrain": "pretraining_dataset",
    "trl 1.16 has no such setting; write dpo_loss_type: [sigmoid_norm]": "dpo_norm_loss",
    "its meaning depends on the number of devices; write gradient_accumulation_steps": "batch_size",
    "prefcli's cosine schedule does not end in a constant": "cosine_constant_lr_ratio",
}
"""Reasons, each with the keys that are refused for it, as `key` or `key=harmless values`."""


def reasons() -> dict[str, Rule]:
    """Return the rule of each key."""
    rules: dict[str, Rule] = {}
    for reason, keys in _DROPPED.items():
        rules |= dict.fromkeys(keys.split(), Drop(reason))
    for reason, keys in _DROPPED_WITH_NOTE.items():
        rules |= dict.fromkeys(keys.split(), Drop(reason, reason))
    for reason, keys in _REFUSED.items():
        why, _, hint = reason.partition("; ")
        for key in keys.split():
            name, _, harmless = key.partition("=")
            values = tuple(map(scalar, harmless.split(","))) if harmless else ()
            rules[name] = Refuse(why, hint, harmless=values)
    return rules
