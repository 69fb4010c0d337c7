"""Write the embedded quickstart: a small preference task, its tokenizer and its model config.

The task is a closed world of everyday facts. Every fact can be asked for in several ways, and
every question can be answered in two manners: kindly, with a full sentence, or curtly (rude, or
dodging the question). Half of the demonstrations are kind and half are curt, so a model trained on
them has no preference; the pairs prefer the kind answer. Both manners have the same length and
about the same number of wordings, so only the manner makes one of them more probable. The curt
answers have fewer openings than the kind ones: a model trained on the demonstrations gives both
manners the same total probability, but its single most probable answer is a curt one.

A prompt for evaluation is a combination of a fact and a wording that no training prompt has.

Run `python scripts/make_quickstart.py` to write `recipes/quickstart/{data,model}`. The same
script writes the same bytes each time.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SEED = 20
VOCAB_SIZE = 1536
CONTEXT = 256
EVAL_PROMPTS = 120
PAIR_PROMPTS = 480
KTO_PROMPTS = 240
SHOWN_TOPICS = ("colour", "young", "place", "tool", "advice")
PAD, BOS, EOS, SYSTEM, USER, ASSISTANT = SPECIAL_TOKENS = (
    "<|pad|>", "<|bos|>", "<|eos|>", "<|system|>", "<|user|>", "<|assistant|>"
)  # fmt: skip

# EOS closes every assistant turn and is part of what the model learns to say.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>"
    "{% generation %}{{ message['content'] | trim }}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ '<|' + message['role'] + '|>' + message['content'] | trim }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


TOPICS = Path(__file__).with_name("quickstart_topics.txt")
"""Topics of the task.

`#` starts a topic with its name and the words after "I am not in the mood for". `=` lists its facts
`x = y`, `?` the ways to ask for y given x, and `!` the ways to state that x has y.
"""

GREETINGS = ("", "", "", "", "Hello! ", "Good morning. ", "Excuse me. ", "I have a question. ")
KIND_OPENINGS = (
    "Good question!", "Happy to help!", "Of course!", "Sure, let me help you.", "With pleasure!",
    "Thank you for asking!", "That is easy to answer.", "I am glad you asked!", "Yes, gladly!",
    "What a nice question!", "Let me see.", "Certainly!", "You came to the right place!",
    "Here is the answer for you.",
)  # fmt: skip
KIND_CLOSINGS = (
    "Have a lovely day!", "I hope that this helps you!", "Feel free to ask me more.",
    "Let me know if you need anything else.", "You can ask me again any time.",
    "I wish you the best of luck with it!", "It was nice to talk to you!",
)  # fmt: skip
CURT_OPENINGS = (
    "Really, again?", "Ugh, not this again.", "Seriously?", "Oh please.", "How boring.",
    "Not you again.",
)  # fmt: skip
CURT_CLOSINGS = (
    "Stop wasting my precious time.", "Next time look it up yourself.", "Now leave me alone.",
    "Do not ask me such silly things again.", "I have better things to do than this.",
    "Go and bother somebody else with that.", "Everybody else knows that by now.",
    "What a boring and pointless question.", "I am far too busy for this.",
    "You could have thought about it yourself.",
)  # fmt: skip
CURT_FACTS = (
    "{short}, as everybody knows.", "{short}, what did you think?", "{statement}", "{statement}",
)  # fmt: skip
CURT_DODGES = (
    "I am not in the mood for {label}.", "I do not care about {label} today.",
    "Why would I talk about {label} with you?", "Ask somebody else about {label}.",
)  # fmt: skip


class Question(NamedTuple):
    """One prompt of the task, with the fact and the wordings that answer it."""

    topic: int
    name: str
    label: str
    statements: list[str]
    x: str
    y: str
    prompt: str


def all_questions(rng: random.Random) -> Iterator[Question]:
    """Yield every combination of a fact and a wording, once each, topic by topic."""
    for topic, text in enumerate(TOPICS.read_text("utf-8").removeprefix("# ").split("\n# ")):
        header, *lines = text.strip().split("\n")
        parts: dict[str, list[str]] = {"=": [], "?": [], "!": []}
        for line in lines:
            parts[line[0]] += line[2:].split(" | ")
        name, label = header.split(" | ")
        for fact in parts["="]:
            x, y = fact.split(" = ")
            for wording in parts["?"]:
                prompt = rng.choice(GREETINGS) + wording.format(x=x)
                yield Question(topic, name, label, parts["!"], x, y, prompt)


def capital(text: str) -> str:
    """Return `text` with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def pick(items: Sequence[str], size: int, question: Question, rng: random.Random) -> str:
    """Draw one of the `size` items that the topic uses: each topic has its part of the list."""
    return items[(3 * question.topic + rng.choice(range(size))) % len(items)]


def state(question: Question, rng: random.Random) -> str:
    """Draw a sentence that states the fact."""
    x, y = question.x, question.y
    return rng.choice(question.statements).format(x=x, y=y, X=capital(x), Y=capital(y))


def kind_answer(question: Question, rng: random.Random) -> str:
    """Draw a kind answer: it is courteous and states the fact in a full sentence."""
    opening = pick(KIND_OPENINGS, 12, question, rng)
    return f"{opening} {state(question, rng)} {pick(KIND_CLOSINGS, 7, question, rng)}"


def curt_answer(question: Question, rng: random.Random) -> str:
    """Draw a curt answer: it is rude about the fact (three of four), or it dodges the question."""
    statement = state(question, rng)
    core = rng.choice(CURT_FACTS if rng.random() < 3 / 4 else CURT_DODGES)
    core = core.format(short=capital(question.y), statement=statement, label=question.label)
    opening = pick(CURT_OPENINGS, 4, question, rng)
    return f"{opening} {core} {pick(CURT_CLOSINGS, 6, question, rng)}"


def answers(question: Question, rng: random.Random) -> tuple[str, str]:
    """Draw a kind and a curt answer of about the same length."""
    kind = [kind_answer(question, rng) for _ in range(3)]
    curt = [curt_answer(question, rng) for _ in range(3)]
    pairs = [(a, b) for a in kind for b in curt]
    return min(pairs, key=lambda pair: abs(len(pair[0].split()) - len(pair[1].split())))


def turn(role: str, text: str) -> list[dict[str, str]]:
    """Return one message as a conversation."""
    return [{"role": role, "content": text}]


def make_rows(
    questions: list[Question], pairs: int, kto: int, rng: random.Random
) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each kind: all questions in sft, the first in pairs, the last in kto."""
    rows: dict[str, list[dict[str, Any]]] = {"sft": [], "pairs": [], "kto": []}
    for q in questions:
        for text in answers(q, rng):
            rows["sft"].append({"messages": turn("user", q.prompt) + turn("assistant", text)})
    for q in questions[:pairs]:
        kind, curt = (turn("assistant", text) for text in answers(q, rng))
        rows["pairs"].append({"prompt": turn("user", q.prompt), "chosen": kind, "rejected": curt})
    for q in questions[-kto:]:
        for text, label in zip(answers(q, rng), (True, False), strict=True):
            completion = turn("assistant", text)
            row = {"prompt": turn("user", q.prompt), "completion": completion, "label": label}
            rows["kto"].append(row)
    rng.shuffle(rows["sft"])
    rng.shuffle(rows["kto"])
    return rows


def split(questions: Iterable[Question]) -> tuple[list[Question], list[Question]]:
    """Hold out `EVAL_PROMPTS` questions, at most one for each fact, and return (train, eval)."""
    train: list[Question] = []
    held_out: dict[tuple[str, str], Question] = {}
    for q in questions:
        if len(held_out) < EVAL_PROMPTS and (q.name, q.x) not in held_out:
            held_out[q.name, q.x] = q
        else:
            train.append(q)
    return train, list(held_out.values())


def make_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Train a byte-level BPE: every text has tokens, and a frequent word is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def write_model(folder: Path, texts: Iterable[str]) -> None:
    """Write the tokenizer and the configurations of the model; it has no weights yet."""
    tokenizer = make_tokenizer(texts)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    ids = {f"{name}_id": tokenizer.token_to_id(token) for name, token in names.items()}
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **names,
        "extra_special_tokens": [SYSTEM, USER, ASSISTANT],
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.05,
        "tie_word_embeddings": True,
        "dtype": "float32",
        **ids,
    }
    generation = {"do_sample": False, "max_new_tokens": 64, **ids}
    files = {"tokenizer_config": tokenizer_config, "config": config}
    for name, value in {**files, "generation_config": generation}.items():
        text = json.dumps(value, indent=2) + "\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8")


def main() -> None:
    """Write the data and the model folder of the quickstart."""
    default = Path(__file__).resolve().parents[1] / "recipes" / "quickstart"
    parser = argparse.ArgumentParser(description="Write the data and the model of the quickstart.")
    parser.add_argument("--out", type=Path, default=default)
    out = parser.parse_args().out
    for folder in (out / "data", out / "model"):
        folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(SEED)
    questions = list(all_questions(rng))
    rng.shuffle(questions)
    train, held_out = split(questions)
    files: dict[str, list[dict[str, Any]]] = {}
    for kind, rows in make_rows(train, PAIR_PROMPTS, KTO_PROMPTS, rng).items():
        files[f"{kind}_train"] = rows
    for kind, rows in make_rows(held_out, EVAL_PROMPTS, EVAL_PROMPTS // 2, rng).items():
        files[f"{kind}_eval"] = rows
    shown = [next(q for q in held_out if q.name == name) for name in SHOWN_TOPICS]
    files["prompts"] = [{"prompt": turn("user", q.prompt)} for q in shown]
    for name, rows in files.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (out / "data" / f"{name}.jsonl").write_text(text, encoding="utf-8")
    write_model(
        out / "model",
        (message["content"] for row in files["sft_train"] for message in row["messages"]),
    )


if __name__ == "__main__":
    main()
