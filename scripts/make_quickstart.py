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
    for topic, text in enumerate(TASK.removeprefix("# ").split("\n# ")):
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
