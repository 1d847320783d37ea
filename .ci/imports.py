"""Import each module of the installed package that needs no extra. Run by `.ci/package`, elsewhere, with `-W error`."""

import importlib
import importlib.util
import pkgutil
import sysconfig
from pathlib import Path

OPTIONAL = (
    "accelerate",
    "dask",
    "distributed",
    "lightning",
    "mlflow",
    "mkdocs",
    "numba",
    "opentelemetry",
    "PIL",
    "prometheus_client",
    "rich",
    "s3fs",
    "tensorboard",
    "transformers",
    "wandb",
)
# These are the extras: their modules import their library at the top.
NEED = tuple(
    f"squirrel_torch.integrations.{name}"
    for name in ("lightning", "huggingface", "opentelemetry", "sinks.mlflow", "sinks.tensorboard", "sinks.wandb")
)


def main() -> None:
    """Raise unless the package lies in site-packages and all of it can be imported."""
    import squirrel_torch
    from squirrel_torch import MissingDependencyError

    place = Path(squirrel_torch.__file__).resolve()
    if Path(sysconfig.get_path("purelib")).resolve() not in place.parents:
        raise SystemExit(f"squirrel_torch was imported from {place}, which is not where the wheel was installed")
    if installed := [name for name in OPTIONAL if importlib.util.find_spec(name) is not None]:
        raise SystemExit(f"packages of extras are installed, so that nothing shows: {', '.join(installed)}")
    count = 0
    for module in pkgutil.walk_packages(squirrel_torch.__path__, "squirrel_torch."):
        if module.name.startswith(NEED):
            continue
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
            count += 1
    for name in NEED:
        try:
            importlib.import_module(name)
        except MissingDependencyError:
            continue
        raise SystemExit(f"{name} could be imported without its extra")
    print(f"{count} modules of {place.parent} imported, none of {len(OPTIONAL)} optional packages needed")


if __name__ == "__main__":
    main()
