"""Command-line parsers whose errors are one sentence with a suggestion."""

import re
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterable
from typing import Any, NoReturn

import jsonargparse

from segcft.core.formatting import meant, shortened
from segcft.core.trusted_code import all_local

UNKNOWN = re.compile(r"(?:[Uu]nrecognized arguments:|No action for (?:destination )?key|Option|Key) *['\"]?([-\w.]+)")
UNION = re.compile(r"Does not validate against any of the Union subtypes Subtypes: .*? Errors: - (.*?) - Expected a .*")
NESTED = re.compile(r'(?:Parser key "[\w.]+": )+')
WITHIN = re.compile(r"^([\w.]+): ([\w.]+)(?=: | is missing)")
MISSING = re.compile(r"^(?:([\w.]+): )?[Tt]he following arguments are required: (.*?)(?= \(|\.?$)")
LONGEST = 2000  # characters of an error: parsers quote whole files
NOWHERE = "no file and no option"
CLASSLESS = re.compile(
    r"([\w.]+): Not a valid subclass of (\w+) Subclass types expect one of: .*\(implicit class_path\)"
)
UNKNOWN_CLASS = re.compile(r"- Expected a path but .*? - Problem with given class_path")
HELP = re.compile(r" \([^()]* --help lists all options\)")  # of a parser within


def simplified(message: str) -> str:
    """An error that jsonargparse wraps in the types it has tried, as the one that the user can do something about."""
    text = UNION.sub(r"\1", " ".join(message.split())) if "Union subtypes" in message else message
    text = UNKNOWN_CLASS.sub("class_path", CLASSLESS.sub(_classless, text))
    text = NESTED.sub(lambda found: ".".join(re.findall(r'"([\w.]+)"', found[0])) + ": ", text)
    return WITHIN.sub(r"\1.\2", MISSING.sub(_missing, text))


def _missing(found: "re.Match[str]") -> str:
    """``source: the following arguments are required: root`` -> ``source: root is missing``."""
    names = [name.strip() for name in found[2].split(",")]
    place = f"{found[1]}: " if found[1] else ""
    return f"{place}{' and '.join(names)} {'is' if len(names) == 1 else 'are'} missing: {NOWHERE} gives a value"


def _classless(found: "re.Match[str]") -> str:
    """Settings of a class that no file or option before them names."""
    such = ", such as --config=experiments/NAME/data.yaml" if found[1] == "data" else ""
    return (
        f"{found[1]}: settings of a {found[2]} are given before its class_path: "
        f"put the file or option that names the class first{such}"
    )


def explained(message: str, program: str, known: Iterable[str]) -> str:
    """Convert a parser's error to one sentence that suggests a similar option and names the help command.

    Args:
        message: The parser's message.
        program: The program, for instance ``segcft fit``.
        known: Valid options, with or without ``--``.
    """
    text = simplified(HELP.sub("", " ".join(message.split())))
    found = UNKNOWN.search(text)
    near = meant(found[1].lstrip("-").partition("=")[0], [name.lstrip("-") for name in known]) if found else ""
    near = "" if "did you mean" in text else near.replace("mean ", "mean --")
    return (
        f"{shortened(text.rstrip('.'), LONGEST)}{near} ({program.replace(' [options]', '')} --help lists all options)"
    )


class PlainParser(ArgumentParser):
    """An ``ArgumentParser`` that raises a one-line error instead of printing its usage and exiting.

    Args:
        command: The command of segcft.
        description: Its description.
    """

    def __init__(self, command: str, description: str) -> None:
        super().__init__(
            prog=f"segcft {command}",
            description=description,
            formatter_class=RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Raise instead of leaving.

        Raises:
            ValueError: Always.
        """
        raise ValueError(explained(message, self.prog, self._option_string_actions))

    def parse_except(self, arguments: list[str], prefixes: str | tuple[str, ...]) -> tuple[Namespace, list[str]]:
        """Parse all arguments but those that begin with one of ``prefixes``; those are returned as they are.

        Raises:
            ValueError: If something is wrong with the others.
        """
        passed = [word for word in arguments if word.startswith(prefixes)]
        return self.parse_args([word for word in arguments if word not in passed]), passed


class Failing:
    """Mixin that gives jsonargparse's parsers the errors of ``PlainParser``; options are not abbreviated either."""

    def __init__(self, *positional: Any, **settings: Any) -> None:
        super().__init__(*positional, **{"allow_abbrev": False, **settings})

    def error(self, message: str, *_: Any, **__: Any) -> NoReturn:
        """Raise instead of leaving.

        Raises:
            ValueError: Always.
        """
        known, program = getattr(self, "_option_string_actions", {}), str(getattr(self, "prog", ""))
        raise ValueError(explained(message, program if program.startswith("segcft") else "segcft COMMAND", known))

    def parse_args(self, *given: Any, **more: Any) -> Any:
        """As jsonargparse, and nothing of what is given is an address in a network.

        Raises:
            ValueError: If something is wrong, or an address.
        """
        config = super().parse_args(*given, **more)  # type: ignore[misc]
        all_local(config.as_dict())
        return config


class Parser(Failing, jsonargparse.ArgumentParser):  # type: ignore[misc]
    """jsonargparse's parser with the errors of ``PlainParser``."""
