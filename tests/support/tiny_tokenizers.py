"""Small tokenizers in which every letter is a token, with the special tokens of real models."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

LLAMA3 = (
    "{% for m in messages %}{{ bos_token if loop.first else '' }}"
    "{{ '<|start|>' + m.role + '<|end|>' + m.content + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|end|>{% endif %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_END = (
    "{% for m in messages %}{{ m.role[0] | upper }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}A: {% endif %}"
)
ENDED = (
    "{% for m in messages %}{{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)
WITH_BOS = "{{ bos_token }}" + ENDED

TEXT = {"prompt": "say", "chosen": " yes", "rejected": " no"}
CHAT = {
    "prompt": [{"role": "user", "content": "say"}],
    "chosen": [{"role": "assistant", "content": "yes"}],
    "rejected": [{"role": "assistant", "content": "no"}],
}


def letters(*special, merges=(), prepends=False, template=None, **named):
    """Build a byte-level tokenizer: special tokens first, then one token per letter."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*special, *alphabet, *("".join(pair) for pair in merges)]
    bpe = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, list(merges)))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(list(special))
    if prepends:
        bos = named["bos_token"]
        bpe.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, special.index(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, **named)
    tokenizer.chat_template = template
    return tokenizer


def llama3():
    """Build an instruct model's tokenizer: EOS (2) ends a turn; 1 ends a text."""
    return letters(
        *("<|begin|>", "<|eos|>", "<|eot|>", "<|start|>", "<|end|>"),
        prepends=True,
        template=LLAMA3,
        bos_token="<|begin|>",
        eos_token="<|eot|>",
    )


def chatml(eos="<|im_end|>"):
    special = ("<|im_start|>", "<|im_end|>", "<|eos|>")
    return letters(*special, template=CHATML, eos_token=eos)


def no_end():
    return letters("<s>", "</s>", template=NO_END, eos_token="</s>")


def never_prepended():
    """Build a tokenizer like GPT-2's: BOS and EOS are one token, and text gets no BOS."""
    return letters("<|eos|>", template=ENDED, bos_token="<|eos|>", eos_token="<|eos|>")


def story(template=WITH_BOS):
    """Build a tokenizer like stories260K's: BOS and EOS are one token, prepended to text."""
    return letters("<s>", prepends=True, template=template, bos_token="<s>", eos_token="<s>")


def sentencepiece():
    """Build a tokenizer like Llama 2's: a token holds its space, and a text loses its first one."""
    words = ("<s>", "<unk>", "▁the", "▁cat", "▁sat", "s", "!")
    bpe = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    bpe.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", unk_token="<unk>")
