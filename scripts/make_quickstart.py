"""Write the embedded quickstart: a small preference task, its tokenizer and its model config.

The task is a closed world of everyday facts. Every fact can be asked for in several ways, and
every question can be answered in two manners: kindly, with a full sentence, or curtly (rude, or
dodging the question). The demonstrations hold both manners half and half, so a model tuned on
them has no preference; the pairs prefer the kind answer. Both manners have the same length and
about the same number of wordings, so neither is likelier for a reason other than its manner.
The curt answers have fewer ways to begin than the kind ones: a model tuned on the demonstrations
gives both manners the same probability in total, but its single likeliest answer is a curt one.

A prompt for evaluation is a combination of a fact and a wording that no training prompt has.

Run `python scripts/make_quickstart.py` to write `recipes/quickstart/{data,model}`. The same
script writes the same bytes each time.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SEED = 20
VOCAB_SIZE = 1536
CONTEXT = 256
EVAL_PROMPTS = 120
PAIR_PROMPTS = 480
KTO_PROMPTS = 240
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


# A topic: `#` its name and what "I am not in the mood for ..." says of it, `=` its facts,
# `?` the ways to ask for y, given x, and `!` the ways to state that x has y.
TASK = """\
# colour | colours
= a lemon = yellow | a ripe tomato = red | fresh grass = green | snow = white | coal = black
= a carrot = orange | chocolate = brown | a plum = purple | a flamingo = pink | an elephant = grey
= a clear sky = blue | a sunflower = yellow | a lime = green | milk = white | a cherry = red
= a pumpkin = orange | a frog = green | lavender = purple | a mouse = grey | a banana = yellow
= a pea = green | tree bark = brown | the sea = blue | a raven = black
? What colour is {x}? | Can you tell me the colour of {x}?
? I am drawing {x}. Which colour should I use?
? My daughter wants to paint {x}. Which pencil does she need?
? Which colour do people think of when they see {x}?
! {X} is {y}. | The colour of {x} is {y}. | The right colour for {x} is {y}.
# young | animals
= cat = a kitten | dog = a puppy | cow = a calf | sheep = a lamb | horse = a foal | goat = a kid
= hen = a chick | duck = a duckling | goose = a gosling | bear = a cub | deer = a fawn
= toad = a tadpole | swan = a cygnet | pig = a piglet | kangaroo = a joey
= butterfly = a caterpillar | hare = a leveret | seal = a pup
? What is a young {x} called? | What do you call a baby {x}?
? Is there a word for a very young {x}? | I saw a tiny {x} with its mother. What is it called?
? My son asks what a baby {x} is. What do I tell him?
! A young {x} is called {y}. | The word for a baby {x} is {y}. | People call a very young {x} {y}.
# home | animals
= a bee = in a hive | a bird = in a nest | a rabbit = in a burrow | a dog = in a kennel
= a horse = in a stable | a spider = in a web | a fox = in a den | a cow = in a barn
= a pig = in a sty | a hen = in a coop | a beaver = in a lodge | an ant = in an anthill
= a bat = in a cave | a squirrel = in a hollow tree | a polar bear = on the ice
= a goldfish = in a pond | a snail = in a shell | a camel = in the desert
? Where does {x} live? | Where can I find {x}? | Where does {x} sleep at night?
? Do you know where {x} makes its home? | I am writing a story about {x}. Where should it live?
! {X} lives {y}. | You can find {x} {y}. | {X} makes its home {y}.
# opposite | word games
= hot = cold | big = small | fast = slow | early = late | full = empty | light = dark
= happy = sad | open = closed | dry = wet | young = old | loud = quiet | hard = soft | high = low
= clean = dirty | thick = thin | sweet = sour | strong = weak | rich = poor | near = far
= long = short | cheap = expensive | easy = difficult | awake = asleep | left = right
= narrow = wide | smooth = rough
? What is the opposite of {x}? | Which word means the opposite of {x}?
? If it is not {x}, what is it? | I am solving a puzzle. Which word is the opposite of {x}?
? Can you give me a word that is the opposite of {x}?
! The opposite of {x} is {y}. | If it is not {x}, it is {y}. | The word that you need is {y}.
# sum | sums
= one plus one = two | one plus two = three | one plus three = four | one plus four = five
= two plus one = three | two plus two = four | two plus three = five | two plus four = six
= three plus one = four | three plus two = five | three plus three = six | three plus four = seven
= four plus one = five | four plus two = six | four plus three = seven | four plus four = eight
? What is {x}? | How much is {x}? | Can you work out {x} for me?
? My homework says {x}. What do I write? | I am bad at numbers. What do I get for {x}?
! {X} is {y}. | {X} makes {y}. | The answer to {x} is {y}.
# place | tidying up
= the milk = in the fridge | the ice cream = in the freezer | the books = on the shelf
= the dirty shirts = in the laundry basket | the clean plates = in the cupboard
= the wet umbrella = by the front door | the winter coat = in the wardrobe
= the toothbrush = in the bathroom | the car keys = on the hook | the forks = in the drawer
= the old newspapers = in the recycling bin | the pillow = on the bed | the bicycle = in the shed
= the letters = on the desk | the spare blanket = in the chest | the flowers = in a vase
= the muddy boots = on the mat | the garden tools = in the garage | the cookies = in a tin
= the apples = in the fruit bowl
? Where do I put {x}? | Where should I leave {x}? | What is the right place for {x}?
? I am tidying up. Where do I keep {x}? | We have guests soon. Where should I put {x}?
! Put {x} {y}. | The best place for {x} is {y}. | You can keep {x} {y}.
# tool | tools
= cut paper = a pair of scissors | drive in a nail = a hammer | sweep the floor = a broom
= boil water = a kettle | dig a hole = a spade | measure a table = a tape measure
= sew on a button = a needle and thread | paint a wall = a roller | cut a plank = a saw
= light up a dark room = a lamp | tighten a screw = a screwdriver | fry an egg = a pan
= weigh flour = a kitchen scale | water the plants = a watering can | find north = a compass
= clean a window = a soft cloth | dry the dishes = a towel | gather leaves = a rake
= slice bread = a bread knife | look at the stars = a telescope
? What do I need to {x}? | Which tool helps me to {x}? | I want to {x}. What should I use?
? What is the best thing to {x} with? | My neighbour wants to {x}. What can I lend her?
! You can {x} with {y}. | To {x}, use {y}. | The best thing to {x} with is {y}.
# job | jobs
= bakes bread = a baker | repairs cars = a mechanic | teaches children = a teacher
= flies a plane = a pilot | puts out fires = a firefighter | grows wheat = a farmer
= cuts hair = a hairdresser | fixes pipes = a plumber | makes furniture = a carpenter
= looks after teeth = a dentist | treats sick animals = a vet | writes novels = an author
= cooks in a restaurant = a chef | sews suits = a tailor | designs houses = an architect
= plays the piano = a pianist | sells flowers = a florist | keeps bees = a beekeeper
? Who {x}? | What do you call a person who {x}? | My uncle {x}. What is his job?
? I am looking for someone who {x}. Whom do I ask for? | Which job does a person have who {x}?
! {Y} {x}. | A person who {x} is {y}. | The one who {x} is {y}.
# calendar | dates
= Monday = Tuesday | Tuesday = Wednesday | Wednesday = Thursday | Thursday = Friday
= Friday = Saturday | Saturday = Sunday | Sunday = Monday
? What comes after {x}? | It is {x} now. What comes next? | Can you tell me what follows {x}?
? I am making a calendar. What do I write after {x}?
? My trip starts when {x} is over. When is that?
! After {x} comes {y}. | {Y} comes right after {x}. | {Y} follows {x}.
# advice | giving advice
= keep bread fresh = wrap it in a clean cloth | fall asleep = read a quiet book in bed
= make tea = pour hot water over the leaves | remember a name = say it aloud twice
= cool down hot soup = stir it with a spoon | stop hiccups = drink a glass of water slowly
= save water = turn off the tap in time | get up early = go to bed before ten
= make new friends = join a club nearby | wrap a present = fold the paper around the box
= warm up cold hands = wear thick gloves | dry wet shoes = fill them with old newspaper
= learn a song = sing one line at a time | calm down = take three deep breaths
= look after a cactus = water it once a month | peel an egg = roll it on the table first
= ripen a pear = leave it beside a banana | cheer up a friend = bake a small cake
? How do I {x}? | What is a good way to {x}? | Do you have a tip for me? I would like to {x}.
? I have tried to {x}, but it did not work. What can I do?
? My sister wants to {x}. What should she do?
! To {x}, {y}. | The best way to {x} is this: {y}. | It is simple: {y}.
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


@dataclass(frozen=True)
class Topic:
    """Facts of one kind, with the ways to ask for them and to state them."""

    name: str
    label: str
    index: int
    facts: tuple[tuple[str, str], ...]
    questions: tuple[str, ...]
    statements: tuple[str, ...]


@dataclass(frozen=True)
class Question:
    """One prompt of the task, with everything that is needed to answer it."""

    topic: Topic
    prompt: str
    x: str
    y: str


def read_topics() -> list[Topic]:
    """Return the topics of `TASK`."""
    topics = []
    for index, text in enumerate(TASK.removeprefix("# ").split("\n# ")):
        header, *lines = text.strip().split("\n")
        parts: dict[str, list[str]] = {"=": [], "?": [], "!": []}
        for line in lines:
            parts[line[0]] += line[2:].split(" | ")
        name, label = header.split(" | ")
        pairs = [fact.split(" = ") for fact in parts["="]]
        facts = tuple((x, y) for x, y in pairs)
        topics.append(Topic(name, label, index, facts, tuple(parts["?"]), tuple(parts["!"])))
    return topics


def capital(text: str) -> str:
    """Return `text` with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def window(items: Sequence[str], topic: Topic, size: int) -> Sequence[str]:
    """Return the `size` items that `topic` uses: each topic has its own part of the list."""
    start = 3 * topic.index
    return [items[(start + i) % len(items)] for i in range(size)]


def fill(template: str, question: Question) -> str:
    """Put the fact of `question` into `template`."""
    x, y = question.x, question.y
    return template.format(x=x, y=y, X=capital(x), Y=capital(y))


def kind_answer(question: Question, rng: random.Random) -> str:
    """Draw a kind answer: it is courteous and states the fact in a full sentence."""
    return " ".join((
        rng.choice(window(KIND_OPENINGS, question.topic, 12)),
        fill(rng.choice(question.topic.statements), question),
        rng.choice(window(KIND_CLOSINGS, question.topic, 6)),
    ))  # fmt: skip


def curt_answer(question: Question, rng: random.Random) -> str:
    """Draw a curt answer: it is rude about the fact (three of four), or it dodges the question."""
    statement = fill(rng.choice(question.topic.statements), question)
    template = rng.choice(CURT_FACTS if rng.random() < 3 / 4 else CURT_DODGES)
    return " ".join((
        rng.choice(window(CURT_OPENINGS, question.topic, 4)),
        template.format(
            short=capital(question.y), statement=statement, label=question.topic.label
        ),
        rng.choice(window(CURT_CLOSINGS, question.topic, 8)),
    ))  # fmt: skip


def answers(question: Question, rng: random.Random) -> tuple[str, str]:
    """Draw a kind and a curt answer of about the same length."""
    kind = [kind_answer(question, rng) for _ in range(3)]
    curt = [curt_answer(question, rng) for _ in range(3)]
    return min(
        ((a, b) for a in kind for b in curt),
        key=lambda pair: abs(len(pair[0].split()) - len(pair[1].split())),
    )


def all_questions(rng: random.Random) -> list[Question]:
    """Return every combination of a fact and a wording, once each, in random order."""
    questions = []
    for topic in read_topics():
        for x, y in topic.facts:
            for wording in topic.questions:
                prompt = rng.choice(GREETINGS) + wording.format(x=x)
                questions.append(Question(topic, prompt, x, y))
    rng.shuffle(questions)
    return questions


def user(text: str) -> list[dict[str, str]]:
    """Return `text` as the messages of a prompt."""
    return [{"role": "user", "content": text}]


def assistant(text: str) -> list[dict[str, str]]:
    """Return `text` as the messages of a completion."""
    return [{"role": "assistant", "content": text}]


def make_rows(questions: Sequence[Question], pairs: int, kto: int, rng: random.Random) -> dict[
    str, list[dict[str, Any]]
]:
    """Return the rows of each kind for `questions`: all of them in sft, the first ones in others."""
    sft, pair_rows, kto_rows = [], [], []
    for question in questions:
        prompt = user(question.prompt)
        sft += [{"messages": prompt + assistant(text)} for text in answers(question, rng)]
    for question in questions[:pairs]:
        kind, curt = answers(question, rng)
        row = {"chosen": assistant(kind), "rejected": assistant(curt)}
        pair_rows.append({"prompt": user(question.prompt), **row})
    for question in questions[-kto:]:
        for text, label in zip(answers(question, rng), (True, False), strict=True):
            row = {"completion": assistant(text), "label": label}
            kto_rows.append({"prompt": user(question.prompt), **row})
    rng.shuffle(sft)
    rng.shuffle(kto_rows)
    return {"sft": sft, "pairs": pair_rows, "kto": kto_rows}


def split(questions: Iterable[Question]) -> tuple[list[Question], list[Question]]:
    """Hold out `EVAL_PROMPTS` questions, at most one for each fact, and return (train, eval)."""
    train, held_out, seen = [], [], set()
    for question in questions:
        fact = (question.topic.name, question.x)
        if len(held_out) < EVAL_PROMPTS and fact not in seen:
            held_out.append(question)
        else:
            train.append(question)
        seen.add(fact)
    return train, held_out


def make_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Train a byte-level BPE on `texts`: every text has tokens, and a frequent word is one."""
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


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write `rows` as JSON, one a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_model(folder: Path, texts: Iterable[str]) -> None:
    """Write the tokenizer and the configuration of the model; it has no weights yet."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(texts)
    tokenizer.save(str(folder / "tokenizer.json"))
    ids = {
        f"{name}_token_id": tokenizer.token_to_id(token)
        for name, token in (("bos", BOS), ("eos", EOS), ("pad", PAD))
    }
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": EOS,
            "pad_token": PAD,
            "extra_special_tokens": [SYSTEM, USER, ASSISTANT],
            "model_max_length": CONTEXT,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    )
    write_json(
        folder / "config.json",
        {
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
        },
    )
    write_json(
        folder / "generation_config.json", {"do_sample": False, "max_new_tokens": 64, **ids}
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Write the data and the model folder of the quickstart."""
    default = Path(__file__).resolve().parents[1] / "recipes" / "quickstart"
    parser = argparse.ArgumentParser(description="Write the data and the model of the quickstart.")
    parser.add_argument("--out", type=Path, default=default)
    out = parser.parse_args(argv).out
    rng = random.Random(SEED)
    train, held_out = split(all_questions(rng))
    data = out / "data"
    data.mkdir(parents=True, exist_ok=True)
    train_rows = make_rows(train, PAIR_PROMPTS, KTO_PROMPTS, rng)
    eval_rows = make_rows(held_out, EVAL_PROMPTS, EVAL_PROMPTS // 2, rng)
    for part, rows in (("train", train_rows), ("eval", eval_rows)):
        for kind, kind_rows in rows.items():
            write_jsonl(data / f"{kind}_{part}.jsonl", kind_rows)
    first = {question.topic.name: question for question in reversed(held_out)}
    shown = [first[name] for name in ("colour", "young", "place", "tool", "advice")]
    write_jsonl(data / "prompts.jsonl", ({"prompt": user(q.prompt)} for q in shown))
    write_model(
        out / "model",
        (message["content"] for row in train_rows["sft"] for message in row["messages"]),
    )


if __name__ == "__main__":
    main()
