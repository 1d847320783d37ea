"""The plan of an epoch: which sample comes at which position, and who gets it. Arithmetic on numbers, nothing else."""

from squirrel_torch.plan.deal import Deal, Tail
from squirrel_torch.plan.drawing import Drawn, Sampled
from squirrel_torch.plan.gaps import NO_GAPS, Gaps
from squirrel_torch.plan.mixing import Branch, InTurn, Mixed
from squirrel_torch.plan.order import Applied, Looped, Order, Permuted, Skipped, Straight, Strided, Taken
from squirrel_torch.plan.permutation import Key, permutation_key, permute
from squirrel_torch.plan.windows import STREAMS, Windowed

__all__ = [
    "NO_GAPS",
    "STREAMS",
    "Applied",
    "Branch",
    "Deal",
    "Drawn",
    "Gaps",
    "InTurn",
    "Key",
    "Looped",
    "Mixed",
    "Order",
    "Permuted",
    "Sampled",
    "Skipped",
    "Straight",
    "Strided",
    "Tail",
    "Taken",
    "Windowed",
    "permutation_key",
    "permute",
]
