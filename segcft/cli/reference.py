"""The page of commands, made of the parsers: ``python -m segcft.cli.reference > docs/commands.md``."""

import contextlib
import io
import os
import re

from segcft.cli.main import COMMANDS, TRAINING, main, usage

SHARED = ("validate", "test", "predict")  # take what fit takes
OWN = ("seed_everything", "experiment", "resume", "save_every", "deterministic", "model", "data")  # of segcft fit
INTRO = """# Commands

Written by `python -m segcft.cli.reference`. Data sets of `segcft prepare` have options of their own:
`segcft prepare chexpert --help`. The options of `segcft fit` also belong to `validate`, `test` and `predict`; those of
Lightning's `Trainer` (`--trainer.max_steps`, `--trainer.accelerator`, ...) are left out here.
"""


def page() -> str:
    """All of docs/commands.md."""
    os.environ["COLUMNS"] = "110"
    parts = [INTRO, f"```text\n{usage().strip()}\n```"]
    for name, command in COMMANDS.items():
        if name not in SHARED:
            parts.append(f"## segcft {name}\n\n```text\n{_help(name, command.function == TRAINING)}\n```")
    return "\n\n".join(parts) + "\n"


def _help(name: str, training: bool) -> str:
    """What ``segcft NAME --help`` prints."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        main([name, "--help"])
    text = said.getvalue()
    return (_own(text) if training else text).strip()


def _own(text: str) -> str:
    """Of the long help of a training command, what is segcft's own."""
    kept, own = ["usage: segcft fit --config FILE.yaml [options]", ""], False
    for line in text.splitlines():
        if option := re.match(r"  (?:-\w, )?--(\w+)", line):
            own = option[1] in OWN and not line.startswith(f"  --{option[1]}.")
        elif not line.startswith("      "):
            own = False
        kept += [line] if own else []
    return "\n".join(kept)


if __name__ == "__main__":
    print(page(), end="")
