"""Where streams begin; the sources that squirrel-core has, under the same path."""

from squirrel_torch.iterstream.iterable import IterableSource
from squirrel_torch.iterstream.mix import IterableSamplerSource
from squirrel_torch.iterstream.paths import FilePathGenerator

__all__ = ["FilePathGenerator", "IterableSamplerSource", "IterableSource"]
