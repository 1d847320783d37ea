"""What a stage is: the contract between the stages and the run that chains them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import Field, dataclass, field, fields, is_dataclass
from enum import Flag, auto
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from squirrel_torch.describe import describe_call
from squirrel_torch.portable import by_value, from_portable, importable, to_portable

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

from squirrel_torch.iterstream.report import StageReport
from squirrel_torch.seeding import Path, Seed, uniform_blocks

__all__ = ["Context", "Split", "Stage"]

T = TypeVar("T")
U = TypeVar("U")


class Split(Flag):
    """The axes along which a stage divides the stream."""

    NONE = 0
    RANK = auto()
    WORKER = auto()


@dataclass(frozen=True)
class Context:
    """Where in a run a stage stands: all that its random numbers may depend on, besides the seed."""

    epoch: int = 0
    path: Path = ()
    reports: dict[int, StageReport] = field(default_factory=dict, repr=False, compare=False)

    def below(self, *step: int | str) -> Context:
        """The context of a part of this stage."""
        return Context(self.epoch, self.path + step, self.reports)

    def report(self, stage: Stage[Any, Any]) -> StageReport:
        """Where `stage` may say what it sees: one for the whole run, also if a loop starts the stage again."""
        return self.reports.setdefault(id(stage), StageReport(stage.describe(), about=stage))

    def uniforms(self, seed: Seed) -> Iterator[npt.NDArray[np.float64]]:
        """Blocks of numbers in [0, 1) that belong to this stage in this epoch, without end."""
        return uniform_blocks(seed, self.epoch, self.path)


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

    @property
    def one_to_one(self) -> bool:
        """Whether it gives one item for each; a class attribute where it doesn't depend on the arguments."""
        return False

    @abstractmethod
    def apply(self, items: Iterator[T]) -> Iterator[U]:
        """The items of this stage, made from those of the stage before."""

    def start(self, upstream: Iterable[T], context: Context) -> Iterator[U]:
        """Like `apply`, for stages that read their upstream several times or need their context."""
        return self.apply(iter(upstream))

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
