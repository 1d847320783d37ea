"""What is public is documented: each name has a docstring, and the `Args:` of it are the parameters that it has."""

import importlib
import inspect
import pkgutil
import re
from collections import Counter
from typing import is_typeddict

import squirrel_torch
from tests.support import ROOT

MODULES = [
    module.name
    for module in pkgutil.walk_packages(squirrel_torch.__path__, "squirrel_torch.")
    if not module.name.endswith("__main__")
]
EXPORTING = ("squirrel_torch", "squirrel_torch.observe", "squirrel_torch.testing", "squirrel_torch.storage.formats")
CONSTANTS = {"squirrel_torch.storage.formats.FORMATS"}
IMPORT = re.compile(r"^ *from (?P<module>squirrel_torch[\w.]*) import (?P<names>[\w, ]+|\([\w,\s]+\))", re.MULTILINE)
REFERENCE = [
    line.split()[1]
    for path in sorted((ROOT / "docs" / "reference").glob("*.md"))
    for line in path.read_text().splitlines()
    if line.startswith(":::")
]
ARGS = re.compile(r"^Args:\n((?:(?: {4}.*)?\n?)*)", re.MULTILINE)
ENTRY = re.compile(r"^ {4}((?:\*{0,2}\w+, )*\*{0,2}\w+):", re.MULTILINE)


def told(doc):
    """The parameters that stand under `Args:`; None where there is no such section."""
    section = ARGS.search(doc)
    return section and [name.lstrip("*") for entry in ENTRY.findall(section[1]) for name in entry.split(", ")]


def parameters(thing):
    if inspect.isclass(thing) and "__init__" not in vars(thing) and issubclass(thing, BaseException):
        return []  # a message
    if is_typeddict(thing):
        return list(thing.__annotations__)
    return [name for name in inspect.signature(thing).parameters if name not in ("self", "cls")]


def members(cls):
    """The public methods and properties that this package has written, their names, and whether no base has them."""
    for name, member in inspect.getmembers_static(cls):
        plain = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if not name.startswith("_") and inspect.isfunction(plain) and plain.__module__.startswith("squirrel_torch"):
            new = sum(name in vars(base) for base in cls.__mro__) == 1
            yield name, member if isinstance(member, property) else plain, new


def faults(name, thing, strict=False):
    """What is wrong with a docstring. `strict`: several parameters are told of, each."""
    doc = inspect.getdoc(thing)
    if not doc:
        yield f"{name} has no docstring"
    elif not isinstance(thing, property):
        has, tells = parameters(thing), told(doc)
        if tells is not None and tells != has:
            yield f"{name} has the parameters {has}, its docstring tells of {tells}"
        elif tells is None and strict and len(has) > 1 and not all(f"`{each}`" in doc for each in has):
            yield f"{name} does not tell what {has} are"


def all_faults(things, strict=False):
    """Of things by their names: classes with their members, and functions."""
    for name, thing in things.items():
        if inspect.isclass(thing):
            yield from faults(name, thing, strict and type(thing) is type)
            for key, member, new in members(thing):
                yield from faults(f"{name}.{key}", member, strict and new)
        elif inspect.isroutine(thing):
            yield from faults(name, thing, strict)


def named(name):
    path = max((module for module in ("squirrel_torch", *MODULES) if name.startswith(f"{module}.")), key=len)
    thing = importlib.import_module(path)
    for part in name[len(path) + 1 :].split("."):
        thing = getattr(thing, part)
    return thing


def test_what_is_exported_has_a_docstring_with_its_parameters():
    modules = {name: importlib.import_module(name) for name in ("squirrel_torch", *MODULES)}
    assert [name for name, module in modules.items() if not module.__doc__] == []
    exported = {
        id(thing): (f"{name}.{key}", thing)
        for name, module in modules.items()
        for key in module.__all__
        for thing in [getattr(module, key)]
    }
    assert list(all_faults(dict(exported.values()))) == []


def test_what_the_reference_shows_tells_of_each_parameter():
    assert list(all_faults({name: named(name) for name in REFERENCE}, strict=True)) == []


def test_what_users_import_stands_once_in_the_reference():
    assert [name for name, count in Counter(REFERENCE).items() if count > 1] == []
    shown = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*.py")]
    imports = [found for path in shown for found in IMPORT.finditer(path.read_text())]
    assert len(imports) > 50
    wanted = {f"{found['module']}.{key}" for found in imports for key in re.findall(r"\w+", found["names"])}
    wanted |= {f"{name}.{key}" for name in EXPORTING for key in importlib.import_module(name).__all__}
    there = [named(name) for name in REFERENCE]
    assert [name for name in sorted(wanted - CONSTANTS) if not any(named(name) is thing for thing in there)] == []
