"""MDL: model, adapter, tokenizer and chat template."""

from __future__ import annotations

from prefcli.error_codes.base import ErrorCode

MODEL_CODES: tuple[ErrorCode, ...] = (
    ErrorCode(
        "MDL001",
        "model-not-found",
        "The path of a model is not a folder, or the folder has no weights.",
        "model: {name_or_path: runs/sft/model} before the sft stage has run",
        "Run the stage that writes the folder, or correct the path. To start from random weights, "
        "write model.init: random.",
    ),
    ErrorCode(
        "MDL002",
        "model-load-failed",
        "The transformers library can't load the config, the weights or the tokenizer. The message "
        "is its own.",
        "model: {name_or_path: no-owner/no-model}",
        "Correct the name or revision; log in with `hf auth login` for a gated or private model.",
    ),
    ErrorCode(
        "MDL003",
        "model-unreachable",
        "The hub is unreachable or offline mode is on, and the cache lacks files of the model.",
        "HF_HUB_OFFLINE=1 prefcli dpo recipe.yaml",
        "Run `prefcli download RECIPE` on a machine with a network and the same cache folder.",
    ),
    ErrorCode(
        "MDL004",
        "revision-of-folder",
        "A local folder has no revisions.",
        "model: {name_or_path: runs/sft/model, revision: main}",
        "Remove the revision.",
    ),
    ErrorCode(
        "MDL005",
        "pickled-weights",
        "The weights exist only as pickle files. Loading them can run code, so prefcli loads "
        "safetensors only.",
        "a model folder with pytorch_model.bin and no .safetensors file",
        "Convert them with `save_pretrained` of transformers or peft, in an isolated environment.",
    ),
    ErrorCode(
        "MDL006",
        "adapter-needs-choice",
        "`name_or_path` is a LoRA adapter, and the recipe does not say what to do with it.",
        "model: {name_or_path: runs/sft/model} where model/ is an adapter",
        "Write model.adapter: continue (train it further), stack (train a new adapter on top of "
        "it) or merge (merge it into its base). The reference is the model with the adapter.",
    ),
    ErrorCode(
        "MDL007",
        "not-an-adapter",
        "`model.adapter` is set, or a merge is requested, and the model is a full one.",
        "model: {name_or_path: Qwen/Qwen3-0.6B, adapter: continue}",
        "Remove model.adapter.",
    ),
    ErrorCode(
        "MDL008",
        "unsupported-adapter",
        "The adapter is not LoRA, or has a feature that model.adapter can't continue or stack: a "
        "bias, saved modules, embeddings or the head, DoRA. A reward model continues only the "
        "adapter of a reward model.",
        "model: {name_or_path: dora-adapter, adapter: stack}",
        "Write model.adapter: merge, or merge the adapter into its base first.",
    ),
    ErrorCode(
        "MDL009",
        "adapter-base-missing",
        "The adapter does not name its base model, or the base model is not at that path.",
        'adapter_config.json: {"base_model_name_or_path": "/home/me/base"} on another machine',
        "Restore the base, or correct base_model_name_or_path in adapter_config.json.",
    ),
    ErrorCode(
        "MDL010",
        "stacked-checkpoint",
        "The checkpoint is an adapter on another adapter, from a run with model.adapter: stack.",
        "model: {name_or_path: runs/stacked/checkpoint-100, adapter: continue}",
        "Start from that run's model/ folder, which has the sum of both adapters; or write "
        "model.adapter: merge.",
    ),
    ErrorCode(
        "MDL011",
        "invalid-lora-target",
        "`lora.target_modules` or `lora.target_parameters` names a layer that the model does not "
        "have, `lora.modules_to_save` one that is neither the embedding nor the output head, or "
        "peft refuses the adapter.",
        "lora: {target_modules: [q_prj]}",
        "Write layers that the message lists, or all-linear. target_parameters: experts adapts the "
        "routed experts of a mixture.",
    ),
    ErrorCode(
        "MDL012",
        "no-eos-token",
        "The tokenizer has no end-of-sequence token, so a trained model would never stop.",
        'tokenizer_config.json: {"eos_token": null}',
        "Name one in model.eos_token.",
    ),
    ErrorCode(
        "MDL013",
        "unknown-eos-token",
        "`model.eos_token` is not in the vocabulary. A new token would have no trained embedding.",
        'model: {eos_token: "<|end|>"}',
        "Name a token of the vocabulary.",
    ),
    ErrorCode(
        "MDL014",
        "template-file-not-found",
        "`model.chat_template` is neither a template nor the path of a file.",
        "model: {chat_template: templates/chatml.jinja}",
        "Correct the path, which is relative to the working directory, or write the template.",
    ),
    ErrorCode(
        "MDL015",
        "template-fails",
        "The chat template fails on a conversation of one user and one assistant message, does not "
        "end within a few seconds, makes a very long text of it, or is one of several without a "
        "default.",
        "model: {chat_template: '{% for m in messages %}{{ m.text() }}{% endfor %}'}",
        "Correct the template, or name another one in model.chat_template.",
    ),
    ErrorCode(
        "MDL016",
        "no-chat-template",
        "The rows or prompts are messages, but the tokenizer has no chat template.",
        "a base model with rows of messages",
        "Name a .jinja file in model.chat_template, or with --chat-template.",
    ),
    ErrorCode(
        "MDL017",
        "no-generation-markers",
        "`assistant_only_loss` and turns with `weight: 0` need a chat template that marks the "
        "assistant's turns.",
        "sft: {assistant_only_loss: true} with a template without {% generation %}",
        "Set model.chat_template to a template with {% generation %} and {% endgeneration %} "
        "around the assistant's turns.",
    ),
    ErrorCode(
        "MDL018",
        "no-generation-prompt",
        "A warning: the chat template ignores add_generation_prompt, so the header of an answer is "
        "trained as part of the answer.",
        "a template that ends with {% endfor %}",
        "End the template with {% if add_generation_prompt %}HEADER{% endif %}.",
    ),
    ErrorCode(
        "MDL019",
        "changed-chat-template",
        "A warning: model.chat_template renders conversations differently from the template that "
        "the model was trained with.",
        "an sft stage with ChatML, then dpo with another template",
        "Remove model.chat_template, or train the earlier stage with the same template.",
    ),
    ErrorCode(
        "MDL020",
        "eos-is-not-a-stop-token",
        "A warning: the tokenizer's EOS token is not among the tokens at which generation stops.",
        'generation_config.json: {"eos_token_id": 1}, and the tokenizer\'s EOS is 2',
        "Add the EOS id to eos_token_id in generation_config.json. A full model gets it when it is "
        "saved; an adapter does not change its base.",
    ),
    ErrorCode(
        "MDL021",
        "padding-is-a-stop-token",
        "A warning: the padding token is a stop token, so generation of padded batches may end "
        "before the first token.",
        'generation_config.json: {"eos_token_id": [0, 2]}, and the padding token is 0',
        "Remove the padding token from eos_token_id, or set another pad_token.",
    ),
    ErrorCode(
        "MDL022",
        "tokenizer-mismatch",
        "The tokenizer does not belong to the model: its vocabulary is larger than the embedding, "
        "or the reference has another vocabulary than the policy.",
        "reference: {name_or_path: OTHER_FAMILY_MODEL}",
        "Name models with the same tokenizer, and folders whose tokenizer and weights belong "
        "together.",
    ),
    ErrorCode(
        "MDL023",
        "max-length-exceeds-context",
        "`data.max_length` is larger than the context of the model, or of a reward model that "
        "scores.",
        "data: {max_length: 8192} with a model of 2048 positions",
        "Write the context length of the message, or less.",
    ),
    ErrorCode(
        "MDL024",
        "unpinned-remote-code",
        "`model.trust_remote_code` would run code that is not pinned to a commit.",
        "model: {name_or_path: OWNER/NAME, trust_remote_code: true}",
        "Write model.revision: COMMIT. If the code is in another repository, copy its files next "
        "to the model and correct auto_map.",
    ),
    ErrorCode(
        "MDL025",
        "damaged-weights-file",
        "A file of weights is empty, cut or a git-lfs pointer, or the index of a sharded model "
        "lists files that do not exist or lie outside its folder.",
        "a model.safetensors whose download was interrupted",
        "Copy or download the file again; run `git lfs pull` for a pointer.",
    ),
    ErrorCode(
        "MDL026",
        "incomplete-weights",
        "The files lack tensors that the config describes, or an adapter has others. The libraries "
        "would train random numbers in their place.",
        "config.json: {num_hidden_layers: 32} with the weights of 28 layers",
        "Restore the complete weights, or the config that belongs to them.",
    ),
    ErrorCode(
        "MDL027",
        "mismatched-weights",
        "Tensors in the files have another shape or type than the config describes.",
        "config.json: {intermediate_size: 11008} with weights of 14336",
        "Restore the config and the weights that belong together.",
    ),
    ErrorCode(
        "MDL028",
        "non-finite-weights",
        "The starting weights contain NaN or infinite values. One in a row that no text uses would "
        "show only when the trained model is saved.",
        "a model that was saved after it had diverged",
        "Restore the weights, or start from an earlier checkpoint.",
    ),
    ErrorCode(
        "MDL029",
        "adapter-with-grown-vocabulary",
        "The adapter was trained with more tokens than its base has: its embedding has more rows.",
        "an adapter with modules_to_save: [embed_tokens, lm_head] and two added tokens",
        "Resize the base to the number of rows, merge the adapter into it, save the result with "
        "the adapter's tokenizer, and start from that folder.",
    ),
    ErrorCode(
        "MDL030",
        "invalid-model-file",
        "A JSON file of a model, an adapter or a tokenizer is not a JSON object.",
        "a config.json that holds []",
        "Restore the file.",
    ),
    ErrorCode(
        "MDL031",
        "token-past-embedding",
        "A token that training uses, such as the padding token, has an id that the model's "
        "embedding has no row for.",
        "a tokenizer to which [PAD] was added as token 32000, with a model of 32000 rows",
        "Make an existing token the padding token, or resize the embedding with "
        "`resize_token_embeddings` and save the model again.",
    ),
    ErrorCode(
        "MDL032",
        "unsupported-architecture",
        "The config describes a model that does not continue text, such as an encoder, a "
        "translation model or a reward model. For `prefcli reward` it is one that can't get a "
        "reward head.",
        'config.json: {"model_type": "t5"}',
        "Name a causal language model, such as Llama, Qwen or GPT-2.",
    ),
    ErrorCode(
        "MDL033",
        "model-files-cannot-be-saved",
        "The config, the generation config or the tokenizer of the model cannot be saved, or the "
        "saved tokenizer reads back differently. The run would fail when it saves model/.",
        "a chat template that the tokenizer's files do not keep",
        "Correct the file that the message describes.",
    ),
    ErrorCode(
        "MDL034",
        "incomplete-model-folder",
        "The folder of a model has no config.json, or no tokenizer.",
        "model: {name_or_path: models/copied-without-tokenizer}",
        "Copy or download the complete folder, or name the tokenizer's folder in model.tokenizer.",
    ),
    ErrorCode(
        "MDL035",
        "merge-is-not-exact",
        "A merged model has other log-probabilities than the base with its adapter.",
        "prefcli merge runs/dpo --output merged    # an adapter that peft cannot merge",
        "Serve the adapter on its base model, and report the case with `prefcli env`.",
    ),
    ErrorCode(
        "MDL036",
        "quantized-base",
        "An adapter is to be merged into a base model that is saved with few bits per weight.",
        "prefcli merge adapter-on-a-4bit-model --output merged",
        "Name the full-precision model in base_model_name_or_path of adapter_config.json.",
    ),
    ErrorCode(
        "MDL040",
        "not-a-reward-model",
        "A reward model is a model for sequence classification with one label, whose output is "
        "the reward. `prefcli reward` trains one.",
        "prefcli score runs/dpo rows.jsonl --output out.jsonl --reward-model gpt2",
        "Name a reward model. A policy is scored by --model.",
    ),
    ErrorCode(
        "MDL041",
        "other-tokens-than-the-reference",
        "The policy and the reference have different vocabularies, so that the probabilities of "
        "their tokens can't be divided.",
        "prefcli score llama-dpo.yaml rows.jsonl --output out.jsonl --model qwen",
        "Add --no-reference, or name a reference of the same family in reference.name_or_path.",
    ),
    ErrorCode(
        "MDL042",
        "policy-is-the-reference",
        "The model to score with is the reference of the recipe, so that every reward is 0.",
        "prefcli score recipe.yaml rows.jsonl --output out.jsonl, before training",
        "Name the trained model with --model or by its run, or add --no-reference.",
    ),
)
