"""What type checkers must refuse: each marked line is an error, and no other is."""

from squirrel_torch import IterableSource, StreamLoader


def length(text: str) -> int:
    return len(text)


source = IterableSource([1, 2, 3])
source.mapp(lambda x: x)  # refused: a misspelt method
source.batch(3)  # refused: torch's name, which would leave the fast chain
source.map(length)  # refused: a callback of other items
source.async_map(length)  # refused: a callback of other items
source.async_map(abs, buffer="all")  # refused: no number, and not "auto"
source.async_map(abs, on_error="ignore")  # refused: neither "raise" nor "skip"
source.async_map(abs, on_error=length)  # refused: not a function of an error and an item
source.async_map(abs, max_failures=0.1)  # refused: neither a count nor a Fraction
source.async_map(abs, executor=3)  # refused: not an executor
source.monitor(3)  # refused: neither a callback nor a sink
source.monitor(print, ranks="all")  # refused: neither "first" nor "each"
source.filter(length)  # refused: a predicate of other items
source.map(str).map(lambda text: text.nothing)  # refused: an attribute that items don't have
source.batched("3")  # refused: a batch size that is no number
source.prefetch(None)  # refused: not a store, and keys that are not text
source.compose(length)  # refused: not a constructor of composables
source.to(lambda items: [1])  # refused: a function that returns no iterator
source.flatten()  # refused: items that hold no items
StreamLoader(source, batch_size=2, collate_fn=length)  # refused: a collation of other items
StreamLoader(source, tail="fill")  # refused: neither "exact", "pad" nor "drop"
StreamLoader(source, shuffle=True)  # refused: an argument of torch's, which a chain decides
