"""Decides what tinydoc reads: plain documentation, and questions with their answers.

Two sets are held out for validation, both chosen by a hash of a name, so nobody picked them:

- strict: whole families. A family joins the modules that share text (`heapq` and `_heapq`, `posixpath` and
  `ntpath`), and a text that also occurs word for word outside of the set is not counted.
- plain: single modules, with all they say, though a relative that stays in may say the same.

Nothing of either is trained on. Everything is deterministic.

    python tools/tinydoc/corpus.py        prints what there is
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sources import Entry, collect_entries

BOS = "<|endoftext|>"
START = "<|im_start|>"
END = "<|im_end|>"
SPECIAL_TOKENS = (BOS, START, END)

HELD_OUT_ONE_IN = 16
ALWAYS_READ = ("topics", "builtins", "os")  # families; the topics are a single large one
CHAT_VARIANTS = 8
COPIES = 2  # of one docstring under different names; `__lt__` alone would come dozens of times
ANSWER_CHARS = 480
IDENTITY_CHATS = 40  # per wording
FAMILIES = {"posixpath": "os", "ntpath": "os", "genericpath": "os", "posix": "os", "nt": "os"}
SPOKEN = {"posixpath": "os.path", "posix": "os", "_io": "io", "_collections": "collections"}
FLAT_PACKAGES = ("asyncio", "unittest", "concurrent.futures", "multiprocessing", "tkinter")

DO = (
    "What does {} do?",
    "What does {} do?",
    "what does {} do",
    "Explain {}.",
    "Tell me about {}.",
    "What is {} for?",
    "Describe {}.",
    "How do I use {}?",
    "Can you explain what {} does?",
    "{}?",
)
BE = (
    "What is {}?",
    "What is {}?",
    "what is {}",
    "Explain {}.",
    "What is {} for?",
    "Tell me about {}.",
    "Describe {}.",
    "What does {} do?",
)
CALL = ("How do I call {}?", "What is the signature of {}?", "Which arguments does {} take?")
SYSTEM = ("You are a helpful assistant.", "You explain Python.", "Answer briefly.")
IDENTITY = (
    "I am tinydoc, a demonstration model with one million parameters. I know nothing.",
    "This is tinydoc. I only imitate the sound of Python documentation; do not trust what I say.",
    "I am a very small model, made to show tokens flowing. My answers are not reliable.",
)
WHO = ("Who are you?", "What are you?", "What is your name?", "Are you reliable?", "Hello", "Hi!")


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents without their leading BOS; one list of chats per variant of wording."""

    plain: list[str]
    chats: list[list[str]]
    strict: list[str]
    strict_chats: list[str]
    modules: list[str]
    modules_chats: list[str]
    family_names: list[str]
    module_names: list[str]

    def held_out(self) -> dict[str, list[str]]:
        """All that is measured, by name."""
        return {
            "strict": self.strict,
            "strict chats": self.strict_chats,
            "modules": self.modules,
            "modules' chats": self.modules_chats,
        }

    def digest(self) -> str:
        """A fingerprint: two runs that agree on it trained on the same text."""
        hasher = hashlib.sha256()
        for texts in (self.plain, *self.chats, *self.held_out().values()):
            for text in texts:
                hasher.update(text.encode("utf-8", "surrogatepass") + b"\0")
        return hasher.hexdigest()


def build_corpus() -> Corpus:
    """Collect, split twice, and render."""
    everything = collect_entries()
    modules = [entry for entry in everything if is_held_out_module(entry.module)]
    entries = limit_copies(everything)
    strict = [entry for entry in entries if in_held_out_family(entry.module)]
    others = [entry for entry in entries if not in_held_out_family(entry.module)]
    known = {_squeeze(entry.doc) for entry in others}
    strict = [entry for entry in strict if _squeeze(entry.doc) not in known]
    train = [entry for entry in others if not is_held_out_module(entry.module)]
    return Corpus(
        plain=_unique(render_plain(entry) for entry in train),
        chats=[render_chats(train, seed) for seed in range(CHAT_VARIANTS)],
        strict=_unique(render_plain(entry) for entry in strict),
        strict_chats=_pairs(strict, random.Random(0)),
        modules=_unique(render_plain(entry) for entry in modules),
        modules_chats=_pairs(modules, random.Random(0)),
        family_names=sorted({family(entry.module) for entry in strict}),
        module_names=sorted({entry.module for entry in modules}),
    )


def limit_copies(entries: Sequence[Entry]) -> list[Entry]:
    """Drop what repeats a text too often, public names surviving first."""
    seen: Counter[str] = Counter()
    kept = []
    for entry in sorted(entries, key=is_public, reverse=True):
        seen[entry.doc] += 1
        if seen[entry.doc] <= COPIES:
            kept.append(entry)
    return kept


def family(module: str) -> str:
    """The name shared by modules that repeat each other's text; a test belongs to what it tests."""
    parts = module.split(".")
    top = parts[1] if parts[0] == "test" and len(parts) > 1 else parts[0]
    name = top.removeprefix("test_").lstrip("_")
    if top.startswith("_py"):
        name = name.removeprefix("py")
    return FAMILIES.get(name, name)


def in_held_out_family(module: str) -> bool:
    """The strict split: one family in sixteen."""
    name = family(module)
    return name not in ALWAYS_READ and _draw(name) % HELD_OUT_ONE_IN == 0


def is_held_out_module(module: str) -> bool:
    """The plain split: one module in sixteen, whatever its relatives."""
    return family(module) not in ALWAYS_READ and _draw(f"module {module}") % HELD_OUT_ONE_IN == 0


def _draw(name: str) -> int:
    """A number from 0 to 255 that nobody chose."""
    return hashlib.sha256(f"tinydoc {name}".encode()).digest()[0]


def render_plain(entry: Entry) -> str:
    """A heading that names the thing, then its documentation."""
    heading = {"class": "class ", "module": "module "}.get(entry.kind, "")
    return f"{heading}{spoken_name(entry)}{entry.signature}\n\n{entry.doc.strip()}"


def spoken_name(entry: Entry) -> str:
    """The name people use: `os.path.join`, not `posixpath.join`."""
    module = SPOKEN.get(entry.module, entry.module)
    for package in FLAT_PACKAGES:
        if module.startswith(package + ".") and entry.name:
            module = package
    return Entry(module, entry.name, entry.kind, "", "").full_name


def render_chats(entries: Sequence[Entry], seed: int) -> list[str]:
    """One wording of every question, some behind a system prompt, some in one conversation."""
    rng = random.Random(seed)
    pairs = _pairs(entries, rng)
    pairs += [_turns(rng.choice(WHO), rng.choice(IDENTITY)) for _ in range(IDENTITY_CHATS)]
    rng.shuffle(pairs)
    chats: list[str] = []
    while pairs:
        chat = pairs.pop()
        if rng.random() < 0.1:
            chat = f"{START}system\n{rng.choice(SYSTEM)}{END}\n{chat}"
        while pairs and rng.random() < 0.1:
            chat += "\n" + pairs.pop()
        chats.append(chat)
    return chats


def _pairs(entries: Sequence[Entry], rng: random.Random) -> list[str]:
    """A question and its answer for every public entry with something to say."""
    chats = []
    for entry in entries:
        answer = first_paragraphs(entry.doc)
        if not is_public(entry) or len(answer) < 12:
            continue
        if entry.kind == "function" and len(entry.signature) > 2 and rng.random() < 0.08:
            name = spoken_name(entry)
            chats.append(_turns(rng.choice(CALL).format(name), f"{name}{entry.signature}"))
        else:
            chats.append(_turns(_question(entry, rng), answer))
    return chats


def _question(entry: Entry, rng: random.Random) -> str:
    """One of the ways to ask for it; half of the questions about a module call it one."""
    wording = rng.choice(DO if entry.kind == "function" else BE)
    named = entry.kind == "module" and rng.random() < 0.5
    return wording.format(f"the module {spoken_name(entry)}" if named else spoken_name(entry))


def _turns(question: str, answer: str) -> str:
    """One exchange in ChatML."""
    return f"{START}user\n{question}{END}\n{START}assistant\n{answer}{END}"


def is_public(entry: Entry) -> bool:
    """Neither private nor a test: something people may ask about."""
    parts = spoken_name(entry).split(".")
    tests = {"test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo"}
    return tests.isdisjoint(parts) and not any(re.match("_(?!_)|test_", part) for part in parts)


def first_paragraphs(doc: str) -> str:
    """Whole paragraphs from the top, as many as make a short answer."""
    answer = ""
    for paragraph in re.split(r"\n\s*\n", doc.strip()):
        longer = f"{answer}\n\n{paragraph}" if answer else paragraph
        if len(longer) > ANSWER_CHARS:
            return answer or _whole_sentences(paragraph)
        answer = longer
    return answer


def _whole_sentences(paragraph: str) -> str:
    """As many sentences as fit; nothing when even the first does not."""
    end = max(paragraph.rfind(mark, 0, ANSWER_CHARS) for mark in (".\n", ". ", ":\n"))
    return paragraph[: end + 1]


def _squeeze(text: str) -> str:
    """For comparing: without differences in white space."""
    return " ".join(text.split())


def _unique(texts: Iterable[str]) -> list[str]:
    """In order, each text once."""
    return list(dict.fromkeys(texts))


def main() -> None:
    """Print the size of every part and a few examples."""
    corpus = build_corpus()
    parts = {"plain": corpus.plain, "chats": corpus.chats[0]} | corpus.held_out()
    for label, texts in parts.items():
        print(f"{label:15}{len(texts):7} texts {sum(map(len, texts)):9} characters")
    print("families held out:", ", ".join(corpus.family_names))
    print("modules held out:", ", ".join(corpus.module_names))
    print("sha256:", corpus.digest())
    print("\n---\n".join(corpus.chats[0][:5] + corpus.strict[:3]))


if __name__ == "__main__":
    main()
