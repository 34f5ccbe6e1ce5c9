"""advml export RUN [state=last|best] [out=FOLDER]

Writes the trained network of a completed run for use without advml (docs/export.md shows how to load it in ten lines):

  model.safetensors   the weights, under the names of the network's modules
  model.pt2           a torch.export program, raw inputs in, batches of any size; where the network can be traced
  export.json         how it is built, how inputs are prepared, how it was trained, what came of it
  README.md           the same for a person

  advml export outputs/supervised/digits/20261120-141502-9f3a                              into RUN/export/last
  advml export outputs/supervised/digits/20261120-141502-9f3a state=best out=my_network    the best on validation

An earlier export in the same folder is replaced. Needs safetensors: pip install "advml[export]".
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str]) -> int:
    """Write the files, say what was written; the folder comes last."""
    from advml.errors import ConfigError, did_you_mean
    from advml.runner.export import export
    from advml.runner.folder import RunFolder
    from advml.runner.inventory import amount

    options = {"state": "last", "out": ""}
    runs = []
    mistakes = []
    for word in arguments:
        key, equals, value = word.partition("=")
        if not equals or "/" in key or Path(word).exists():
            runs.append(word)
        elif key in options:
            options[key] = value
        else:
            mistakes.append(f"{word}: unknown option{did_you_mean(key, options)}; there are state and out")
    if len(runs) != 1:
        mistakes.append("export: name one run folder: advml export RUN (see: advml runs)")
    if options["state"] not in ("last", "best"):
        mistakes.append(f"state={options['state']}: must be last or best")
    if mistakes:
        raise ConfigError(mistakes)
    folder = RunFolder.open(runs[0])
    state = options["state"]
    done = export(folder, state, Path(options["out"]) if options["out"] else folder / "export" / state)
    for name in done.names:
        print(f"{amount((done.folder / name).stat().st_size):>8}  {name}")
    if done.problem:
        print(f"no model.pt2: {done.problem}")
    print(done.folder)
    return 0
