"""The tools' own names of settings that prefcli migrate calls by trl's name."""

from __future__ import annotations

_TRL = """
    torch_dtype=dtype evaluation_strategy=eval_strategy max_seq_length=max_length
    activation_checkpointing=gradient_checkpointing preprocessing_num_workers=dataset_num_proc
    hub_model_revision=hub_revision push_to_hub_model_id=hub_model_id
    ref_model=ref_model_name_or_path
"""
_NAMES = {
    "trl": _TRL,
    "alignment-handbook": _TRL,
    "W&B": f"{_TRL} _name_or_path=model_name_or_path _attn_implementation=attn_implementation",
    "LLaMA-Factory": f"""
        {_TRL} finetuning_type=use_peft lora_target=lora_target_modules lora_rank=lora_r
        additional_target=lora_modules_to_save
        flash_attn=attn_implementation template=chat_template cutoff_len=max_length
        pref_beta=beta pref_loss=loss_type pref_ftx=rpo_alpha kto_chosen_weight=desirable_weight
        kto_rejected_weight=undesirable_weight early_stopping_steps=early_stopping_patience
    """,
    "axolotl": """
        base_model=model_name_or_path revision_of_model=model_revision adapter=use_peft
        tokenizer_config=tokenizer_name_or_path
        lora_model_dir=adapter_name_or_path peft_use_rslora=use_rslora peft_use_dora=use_dora
        sequence_len=max_length dataset_processes=dataset_num_proc num_epochs=num_train_epochs
        micro_batch_size=per_device_train_batch_size eval_batch_size=per_device_eval_batch_size
        optimizer=optim lr_scheduler=lr_scheduler_type evaluation_strategy=eval_strategy
        rl_beta=beta dpo_beta=beta orpo_alpha=beta kto_desirable_weight=desirable_weight
        kto_undesirable_weight=undesirable_weight dpo_loss_type=loss_type
        dpo_loss_weights=loss_weights dpo_label_smoothing=label_smoothing sample_packing=packing
        train_on_inputs=train_on_prompt wandb_name=run_name
        eval_strategy=eval_strategy
    """,
    "oumi": """
        training.trainer_kwargs.max_seq_length=max_length
        training.trainer_kwargs.max_length=max_length
        model.model_name=model_name_or_path model.adapter_model=adapter_name_or_path
        model.tokenizer_name=tokenizer_name_or_path model.torch_dtype_str=dtype
        model.model_max_length=max_length training.optimizer=optim
        training.enable_gradient_checkpointing=gradient_checkpointing
        peft.q_lora_bits=quantization_bit peft.bnb_4bit_compute_dtype=compute_dtype
    """,
}

TRL_NAMES = {
    tool: dict(word.split("=") for word in words.split()) for tool, words in _NAMES.items()
}
"""By tool and its own name: trl's name."""

_NOT_IN_TRL = """
    adapter_name_or_path create_new_adapter mixed_precision_dtype flash_attention sdp_attention
    eager_attention flex_attention quantization_bit q_lora chat_template_jinja special_tokens
    lora_target_linear train_on_prompt neat_packing cosine_min_lr_ratio evals_per_epoch
    saves_per_epoch save_epoch pure_bf16 use_dft_loss disable_gradient_checkpointing bfloat16
    float16
"""
_NOT_IN_AXOLOTL = """
    alpha assistant_only_loss chat_template_path completion_only_loss create_new_adapter
    dataset_kwargs disable_gradient_checkpointing discopop_tau dtype early_stopping_threshold
    enable_mlflow enable_tensorboard enable_wandb eos_token f_alpha_divergence_coef
    f_divergence_type gamma_beta_ratio hub_always_push hub_private_repo ld_alpha
    max_completion_length mixed_precision_dtype neat_packing pure_bf16 push_to_hub_model_id q_lora
    quantization_bit ref_model_name_or_path save_epoch use_dft_loss use_flash_attention_2
"""
NOT_IN = {
    "trl": _NOT_IN_TRL.split(),
    "alignment-handbook": _NOT_IN_TRL.split(),
    "W&B": _NOT_IN_TRL.split(),
    "axolotl": _NOT_IN_AXOLOTL.split(),
}
"""The settings that a tool does not have, and would ignore or refuse."""
