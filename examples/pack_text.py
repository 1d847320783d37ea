"""Pack texts of very different lengths into sequences of one length, and train a small language model on them.

    python examples/pack_text.py

The texts are the docstrings of Python's own library, from a word to several thousand bytes; a token is a byte. Were each filled
up to the longest, most of what a model computes would be for nothing. Packed, several share a sequence, and two more tensors
say which text a token belongs to and where in it: by them a text sees itself alone, and begins at position 0, which is checked.

There is no stage for that in the package: `Packed` shows a stage of your own, which holds texts back and can nevertheless be
gone on with. The training is stopped in its middle, and goes on in a new loader from a state of plain JSON; at the end each
byte was trained on once.
"""

import argparse
import ast
import json
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.data import default_collate

from squirrel_torch import Composable, Following, IterableSource, Stage, Step, StreamLoader

LENGTH, BATCH = 512, 8
END = b"\0"

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Text:
    """A text, or a part of one.

    Args:
        number: Which text.
        start: Where in it the part begins.
        data: Its bytes.
    """

    number: int
    start: int
    data: bytes


@dataclass(frozen=True)
class Packed(Stage[Text, Batch]):
    """Several texts in each sequence. Order: changed, by their lengths. Holds: `held` texts. State: the ids of these.

    The oldest text that is held begins a sequence; then comes the longest one that still fits, as long as one does. So nothing
    is held for ever, and short texts fill the gaps.

    A sequence is a dict of int64 tensors [length]: "tokens"; "texts", the number of each token's text, -1 for what is left over
    at the end; "positions", the place of each token in its text.

    Args:
        length: Tokens of a sequence, and at most of a text.
        held: Among how many texts is chosen.
    """

    length: int
    held: int = 100
    holds: ClassVar[bool] = True
    remembers: ClassVar[Mapping[str, str]] = {"held": "ids"}

    def __post_init__(self) -> None:
        if min(self.length, self.held) < 1:
            raise ValueError(f"length and held must be at least 1, got {self.length} and {self.held}")

    def apply(self, items: Iterator[Text]) -> Iterator[Batch]:
        """The sequences of one run."""
        return (sequence for _, sequence in self._packed(((0, text) for text in items), {}, []))

    def follow(self, steps: Iterator[Step], memory: dict[str, Any], following: Following) -> Iterator[Step]:
        """The same for a run that can be gone on with: what it has to know is in `memory`, and that is which texts it holds."""
        ids = memory.get("held", [])
        return self._packed(steps, memory, list(zip(ids, following.remake(ids), strict=True)))

    def _packed(self, steps: Iterator[Step], memory: dict[str, Any], held: list[Step]) -> Iterator[Step]:
        while held := [*held, *islice(steps, self.held - len(held))]:
            chosen = self._choose([len(text.data) for _, text in held])
            texts = [held[index] for index in chosen]
            held = [step for index, step in enumerate(held) if index not in chosen]
            memory["held"] = [own for own, _ in held]
            yield tuple(own for own, _ in texts), self._joined([text for _, text in texts])

    def _choose(self, lengths: Sequence[int]) -> list[int]:
        """Which of the texts that are held make the next sequence: their places, in the order in which they stand in it."""
        chosen, room = [0], self.length - lengths[0]
        for index in sorted(range(1, len(lengths)), key=lambda index: -lengths[index]):
            if lengths[index] <= room:
                chosen.append(index)
                room -= lengths[index]
        return chosen

    def _joined(self, texts: Sequence[Text]) -> Batch:
        tokens, numbers = torch.zeros(self.length, dtype=torch.int64), torch.full((self.length,), -1)
        positions, at = torch.zeros_like(tokens), 0
        for text in texts:
            here = slice(at, at := at + len(text.data))
            tokens[here] = torch.tensor(list(text.data))
            numbers[here] = text.number
            positions[here] = torch.arange(text.start, text.start + len(text.data))
        return {"tokens": tokens, "texts": numbers, "positions": positions}

    def parents(self, ids: Sequence[Any]) -> Sequence[Any]:
        """The ids of the texts in these sequences. It and `remake` are for stages behind this one that hold sequences back."""
        return [own for sequence in ids for own in sequence]

    def remake(self, ids: Sequence[Any], following: Following) -> list[Any]:
        """These sequences, made again."""
        texts = iter(following.remake(self.parents(ids)))
        return [self._joined(list(islice(texts, len(sequence)))) for sequence in ids]


def read_docstrings(modules: int) -> list[bytes]:
    """All docstrings of so many modules of Python's library."""
    found: list[bytes] = []
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:modules]:
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, documented) and (text := ast.get_docstring(node)):
                found.append(text.encode() + END)
    return found


def parts(text: Text) -> Iterator[Text]:
    """A text in parts that fit into a sequence."""
    for start in range(0, len(text.data), LENGTH):
        yield Text(text.number, start, text.data[start : start + LENGTH])


def packed(texts: Sequence[bytes]) -> Composable[Batch]:
    """Batches of sequences: {"tokens", "texts", "positions"}, each int64 [batch, LENGTH]."""
    numbered = [Text(number, 0, data) for number, data in enumerate(texts)]
    return (
        IterableSource(numbered)
        .shuffle(len(numbered))
        .flat_map(parts)
        .then(Packed(LENGTH))
        .batched(BATCH, default_collate, drop_last_if_not_full=False)
    )


class LanguageModel(nn.Module):
    """Two layers of attention over bytes."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(256, width), nn.Embedding(LENGTH, width)
        layers = [nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, batch_first=True, norm_first=True) for _ in range(2)]
        self.layers, self.head = nn.ModuleList(layers), nn.Linear(width, 256)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits of the token that comes next: float32 [batch, length, 256]."""
        texts = batch["texts"]
        other = texts[:, :, None] != texts[:, None, :]  # [batch, length, length]
        later = torch.ones_like(other[0]).triu(1)
        mask = (other | later).repeat_interleave(4, dim=0)  # for each head; True is not seen
        hidden = self.token(batch["tokens"]) + self.position(batch["positions"] % LENGTH)
        for layer in self.layers:
            hidden = layer(hidden, src_mask=mask)
        logits: torch.Tensor = self.head(hidden)
        return logits

    def loss(self, batch: Batch) -> torch.Tensor:
        """Of all tokens that have one before them in the same text and sequence."""
        texts = batch["texts"]
        counts = (texts[:, 1:] == texts[:, :-1]) & (texts[:, 1:] >= 0)
        return nn.functional.cross_entropy(self(batch)[:, :-1][counts], batch["tokens"][:, 1:][counts])


class Ledger:
    """Which bytes were trained on, and how many tokens that took.

    Args:
        texts: All of them.
    """

    def __init__(self, texts: Sequence[bytes]) -> None:
        lengths = torch.tensor([len(text) for text in texts])
        self.data = torch.tensor(list(b"".join(texts)))
        self.starts = lengths.cumsum(0) - lengths
        self.times = torch.zeros_like(self.data)
        self.tokens = 0

    def note(self, batch: Batch) -> None:
        """Count the bytes of a batch, each of which must be the one that it says it is."""
        real = batch["texts"] >= 0
        places = (self.starts[batch["texts"]] + batch["positions"])[real]
        if not torch.equal(self.data[places], batch["tokens"][real]):
            raise RuntimeError("a token is not the one of its text and position")
        self.times += torch.bincount(places, minlength=len(self.times))
        self.tokens += real.numel()


@torch.no_grad()
def check_alone(model: LanguageModel, batch: Batch) -> tuple[int, float]:
    """Give the texts of the fullest sequence to the model one by one.

    Returns:
        How many there are, and how much their logits differ at most from those in the sequence.
    """
    numbers = [sorted({number for number in row if number >= 0}) for row in batch["texts"].tolist()]
    fullest = max(range(len(numbers)), key=lambda row: len(numbers[row]))
    logits, differences = model(batch)[fullest], []
    for number in numbers[fullest]:
        here = batch["texts"][fullest] == number
        alone = {name: tensor[fullest : fullest + 1, here] for name, tensor in batch.items()}
        differences.append(float((model(alone)[0] - logits[here]).abs().max()))
    return len(differences), max(differences)


def train(
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    loader: StreamLoader[Batch],
    ledger: Ledger,
    steps: int | None = None,
) -> None:
    """Train on at most so many batches of an epoch."""
    for step, batch in enumerate(loader, 1):
        ledger.note(batch)
        loss = model.loss(batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's stubs
        optimizer.step()
        if step == 1:
            together, difference = check_alone(model, batch)
            print(f"loss {loss.item():.2f}; logits of {together} texts that share a sequence differ by {difference:.0e} alone")
            if difference > 1e-4:
                raise RuntimeError("texts see each other")
        if step == steps:
            return


def main() -> None:
    """Train for one epoch, with a stop in between, and say how full the sequences were."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modules", type=int, default=30, help="of Python's library")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--stop-after", type=int, default=20, help="steps; the rest of the epoch follows in another loader")
    options = parser.parse_args()

    texts = read_docstrings(options.modules)
    longest = min(LENGTH, max(map(len, texts)))
    count = sum(-(-len(text) // longest) for text in texts)
    ledger = Ledger(texts)
    print(f"{len(texts)} texts, filled up to {longest} tokens each: {len(ledger.data) / (count * longest):.1%} of them real")
    torch.manual_seed(0)
    model = LanguageModel()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    loader = StreamLoader(packed(texts), num_workers=options.workers)
    train(model, optimizer, loader, ledger, options.stop_after)
    checkpoint = json.dumps([loader.state_dict()])  # of each rank; here there is one
    loader = StreamLoader(packed(texts), num_workers=0)
    loader.load_state_dict(json.loads(checkpoint))
    train(model, optimizer, loader, ledger)
    if not bool((ledger.times == 1).all()):
        raise RuntimeError(f"not each byte was trained on once: {ledger.times.bincount().tolist()}")
    real = len(ledger.data)
    print(f"{real} bytes of {len(texts)} texts, each trained on once, are {real / ledger.tokens:.1%} of the packed tokens")


if __name__ == "__main__":
    main()
