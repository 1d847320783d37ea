"""What a stage is: the contract between the stages and the run that chains them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, is_dataclass
from enum import Flag, auto
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, TypeAlias, TypeVar

from squirrel_torch.describe import describe_call
from squirrel_torch.portable import by_value, from_portable, importable, to_portable

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

from squirrel_torch.iterstream.keyed import Keys, Wanted
from squirrel_torch.iterstream.report import StageReport
from squirrel_torch.seeding import DEFAULT_SEED, Path, Seed, uniform_blocks

__all__ = ["UNSIGNED", "Context", "Following", "Id", "Split", "Stage", "Step"]

T = TypeVar("T")
U = TypeVar("U")

Id: TypeAlias = "int | tuple[Any, ...]"
"""Names an item by how it came about: the number of the sample, or a tuple of ids and numbers."""

Step: TypeAlias = "tuple[Id, Any]"
"""An item and its id."""

UNSIGNED: Final = {"signed": False}
"""The metadata of an argument of a stage that may differ between two chains when one goes on with the state of the other."""


class Split(Flag):
    """The axes along which a stage divides the stream."""

    NONE = 0
    RANK = auto()
    WORKER = auto()


@dataclass(frozen=True)
class Context:
    """Where in a run a stage stands: all that its random numbers may depend on, besides the seed.

    Args:
        epoch: Which epoch it is, from 0.
        path: Where in the chain: the number of the place, and of what is inside of it.
        reports: What the stages say of themselves, by their id.
    """

    epoch: int = 0
    path: Path = ()
    reports: dict[int, StageReport] = field(default_factory=dict, repr=False, compare=False)

    def below(self, *step: int | str) -> Context:
        """The context of a part of this stage."""
        return Context(self.epoch, self.path + step, self.reports)

    def report(self, stage: Stage[Any, Any]) -> StageReport:
        """Where `stage` may say what it sees: one for the whole run, also if a loop starts the stage again."""
        return self.reports.setdefault(id(stage), StageReport(stage.describe(), about=stage))

    def uniforms(self, seed: Seed, start: int = 0) -> Iterator[npt.NDArray[np.float64]]:
        """Blocks of numbers in [0, 1) that belong to this stage, epoch and `seed`, from number `start` on, without end.

        Yields:
            Float64, shape `[block]`.
        """
        return uniform_blocks(seed, self.epoch, self.path, start)


@dataclass(frozen=True)
class Following:
    """What a stage is told by a run that keeps track of each item.

    Args:
        context: Where the stage stands.
        below: The states of the places before it, as they are now.
        remake: The items that the place before it gave under some ids, made again.
        seed: Of the last place before it that has one.
        number: How many stages before it ask for generators.
    """

    context: Context
    below: Callable[[], list[Any]]
    remake: Callable[[Sequence[Id]], list[Any]]
    seed: Seed = DEFAULT_SEED
    number: int = 0

    def keys(self, wanted: Wanted) -> Keys:
        """Makes the generators that the callback of the stage asks for."""
        return Keys(wanted, self.seed, self.context.epoch, (*self.context.path, "callback", self.number))


class Stage(ABC, Generic[T, U]):
    """Says how one iterator becomes another. Subclasses are frozen dataclasses whose fields are their arguments.

    A stage describes and never changes: what changes while items flow lives in the generator that `apply` returns, so
    two runs of one stage never meet. A subclass implements `apply`, best as a generator over ``for item in items``.

    Its docstring has one line "Order / Holds / State", and these class attributes say what the rest of the package has
    to know of it:

    * `splits`: the axes along which it divides the stream.
    * `moves_only`: it only chooses and orders items. A split that is put in automatically goes behind such stages.
    * `needs_whole`: it means something else on a part of the stream (the first n, the index, neighbours). A split that
      is put in automatically goes behind it. None: it can't be known, and nothing is split automatically.
    * `holds`: it pulls items ahead of those it gives. Its generator may keep a local `position`, the number of items
      given so far, for messages.
    * `draws`: it uses random numbers.
    * `remembers`: what `follow` keeps in its memory: names, each with "count", "counts", "flag", "id", "ids" or
      "tally" (counts by name). Ids that it holds of the stage before stand under "held", or a single one under "open".
    * `one_to_one`: it gives exactly one item for each, in their order, and looks at no other. Such a stage may be run on the
      items of any places of the stream: a shuffle behind it is done before it.
    * `repeats`: it may read its upstream several times in one pass.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Scaled(Stage[float, float]):
        ...     factor: float
        ...     def apply(self, items):
        ...         for item in items:
        ...             yield item * self.factor
        >>> from squirrel_torch import IterableSource
        >>> IterableSource([1.0, 2.0]).then(Scaled(factor=10.0)).collect()
        [10.0, 20.0]
    """

    splits: ClassVar[Split] = Split.NONE
    moves_only: ClassVar[bool] = False
    needs_whole: ClassVar[bool | None] = False
    holds: ClassVar[bool] = False
    draws: ClassVar[bool] = False
    repeats: ClassVar[bool] = False

    remembers: ClassVar[Mapping[str, str]] = {}

    @property
    def wanted(self) -> Wanted | None:
        """The generator that its callback asks for, if it has one that does."""
        return None

    @property
    def one_to_one(self) -> bool:
        """Whether it gives one item for each; a class attribute where it doesn't depend on the arguments."""
        return False

    @abstractmethod
    def apply(self, items: Iterator[T]) -> Iterator[U]:
        """The items of this stage, made from those of the stage before."""

    def start(self, upstream: Iterable[T], context: Context) -> Iterator[U]:
        """Like `apply`, for stages that read their upstream several times or need their context.

        Args:
            upstream: The stage before. Each iteration begins it anew.
            context: Where in the run this stage stands.
        """
        return self.apply(iter(upstream))

    def follow(self, steps: Iterator[Step], memory: dict[str, Any], following: Following) -> Iterator[Step]:
        """Like `start`, for a run that can be resumed: items travel with their ids.

        What a stage has to know to go on is in `memory`, and only there: local variables are lost. It is filled before each
        ``yield``, and holds what `remembers` says, plain JSON types; items are never in it, their ids are. A run that goes on
        hands over the memory as it was at some ``yield``, and steps that begin behind those that had been pulled.

        This one is for stages that are `one_to_one`. Others that don't implement it are run again from the beginning.

        Args:
            steps: (id, item) of the stage before.
            memory: Empty at the beginning.
            following: Where the stage stands, and how to make items again.

        Yields:
            (id, item): an item that is passed on keeps its id; one that is made of several has the tuple of their ids, one
            of several that are made of one has (id, place).
        """
        ids: deque[Id] = deque()

        def items() -> Iterator[T]:
            for own, item in steps:
                ids.append(own)
                yield item

        for item in self.start(items(), following.context):
            yield ids.popleft(), item

    def check(self, memory: Mapping[str, Any]) -> None:  # most have nothing more to say
        """Look through a memory that was saved, of which each part has its kind, before anything is opened.

        Raises:
            StateError: If it can't be one of this stage.
        """

    def parents(self, ids: Sequence[Id]) -> Sequence[Id] | None:
        """The ids of the stage before of which its items under `ids` are made; None if that is not known.

        Raises:
            StateError: If an id can't be one of its.
        """
        return ids if type(self).remake is Stage.remake else None

    def remake(self, ids: Sequence[Id], following: Following) -> list[Any]:
        """The items that it gave under these ids, made again.

        This one is for stages that are `one_to_one`, and for those that pass on items as they are.

        Args:
            ids: Of items of this stage.
            following: What stands before it.

        Raises:
            ReplayMismatch: If one can't be made any more.
            StateError: If an id can't be one of its.
        """
        items = following.remake(ids)
        return list(self.start(iter(items), following.context)) if self.one_to_one else items

    def describe(self) -> str:
        """The stage as one would write it, callables by their name."""
        arguments: tuple[Field[Any], ...] = fields(self) if is_dataclass(self) else ()
        return describe_call(type(self).__name__, {one.name: getattr(self, one.name) for one in arguments if _says(self, one)})

    def __reduce_ex__(self, protocol: Any) -> Any:
        if importable(type(self)):
            return super().__reduce_ex__(protocol)
        # A class of a function's body or of a notebook: it travels by value.
        return (*by_value(type(self)), self.__getstate__())

    def __getstate__(self) -> dict[str, Any]:
        return to_portable(self.__dict__, inside=True)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Frozen dataclasses refuse setattr; their __dict__ does not.
        self.__dict__.update(from_portable(state, inside=True))


def _says(stage: Stage[Any, Any], argument: Field[Any]) -> bool:
    """Whether an argument is worth a word: not if it is what it is anyway."""
    value = getattr(stage, argument.name)
    factory: Any = argument.default_factory
    default = factory() if callable(factory) else argument.default  # MISSING is a copy where the class was pickled by value
    return argument.repr and not (type(value) is type(default) and value == default)
