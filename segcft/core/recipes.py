"""Recipes: class path and constructor arguments as plain data, from which a checkpoint rebuilds its parts."""

import functools
import importlib
import inspect
import os
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from typing import Any

TRUSTED_PACKAGES = ("segcft", "data_modules")
TRUST = "SEGCFT_TRUSTED_PACKAGES"  # environment variable: a user's own packages, separated by commas


class Recorded:
    """Mixin for every class that a checkpoint can rebuild: records the constructor's arguments as plain data."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in cls.__dict__:
            cls.__init__ = recording(cls.__init__, "_arguments", plain)  # type: ignore[method-assign]

    @property
    def recipe(self) -> dict[str, Any]:
        """``{"class_path": ..., "init_args": {...}}``; for a part given as a path, the recipe of the loaded part."""
        given: dict[str, Any] = self.__dict__.get("_arguments", {})  # empty for a class without a constructor
        arguments = {name: _present(getattr(self, name, None), value) for name, value in given.items()}
        return {"class_path": _path(type(self)), "init_args": arguments}


def build(recipe: dict[str, Any], trusted: tuple[str, ...] = TRUSTED_PACKAGES) -> Any:
    """Build the object that a recipe describes, nested recipes first.

    Raises:
        ValueError: If it is not one, or a class is outside the ``trusted`` packages or does not exist.
    """
    if not is_recipe(recipe):
        raise ValueError(f"a class_path and init_args are needed, not {recipe!r:.200}")
    return resolve(recipe["class_path"], trusted)(**_built(recipe["init_args"], trusted))


def is_recipe(value: Any) -> bool:
    """Whether plain data is a recipe: a class path, and arguments by name."""
    return (
        isinstance(value, dict)
        and value.keys() == {"class_path", "init_args"}
        and isinstance(value["class_path"], str)
        and isinstance(value["init_args"], dict)
        and all(isinstance(name, str) for name in value["init_args"])
    )


def resolve(class_path: str, trusted: tuple[str, ...] = TRUSTED_PACKAGES) -> type:
    """The class that a recipe names.

    Raises:
        ValueError: If it is outside the ``trusted`` packages, does not exist, or does not record its arguments.
    """
    found = imported(class_path, trusted)
    if not (isinstance(found, type) and (issubclass(found, Recorded) or is_dataclass(found))):
        raise ValueError(f"class_path {class_path!r} is neither a recorded class nor a dataclass")
    return found


def imported(class_path: str, trusted: tuple[str, ...] = TRUSTED_PACKAGES) -> Any:
    """The object at a dotted path, if its package is in ``trusted`` or in ``SEGCFT_TRUSTED_PACKAGES``.

    Raises:
        ValueError: If the package is not trusted or the object does not exist.
    """
    module_name, _, name = class_path.rpartition(".")
    if not trusts(module_name, trusted):
        raise ValueError(
            f"class_path {class_path!r} lies outside the trusted packages {', '.join(trusted + declared())}; "
            f"if its code is yours, set the environment variable {TRUST} to its package"
        )
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        older = trusts(module_name, TRUSTED_PACKAGES)
        hint = "; a checkpoint of an older version has to be trained again" if older else ""
        raise ValueError(
            f"class_path {class_path!r} does not exist in this version of segcft{hint}: {error}"
        ) from error
    if not trusts(made_in(found), trusted):
        raise ValueError(f"class_path {class_path!r} leads to {made_in(found)!r}, outside the trusted packages")
    return found


def made_in(found: Any) -> str:
    """The module that an object was defined in; of an instance, that of its class."""
    return str(getattr(found, "__module__", "") or type(found).__module__)


def trusts(path: str, trusted: tuple[str, ...]) -> bool:
    """Whether a dotted path is in one of the ``trusted`` packages or in one of ``SEGCFT_TRUSTED_PACKAGES``."""
    return any(f"{path}.".startswith(f"{package}.") for package in trusted + declared())


def declared() -> tuple[str, ...]:
    """Packages named in the environment variable ``SEGCFT_TRUSTED_PACKAGES``."""
    return tuple(package.strip() for package in os.environ.get(TRUST, "").split(",") if package.strip())


def _built(value: Any, trusted: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"class_path", "init_args"}:
            return build(value, trusted)
        return {key: _built(item, trusted) for key, item in value.items()}
    return [_built(item, trusted) for item in value] if isinstance(value, list) else value


def plain(value: Any) -> Any:
    """Convert an argument to str, int, float, bool, None, lists and dicts, which ``weights_only=True`` can load."""
    if isinstance(value, Recorded):
        return value.recipe
    if is_dataclass(value) and not isinstance(value, type):
        arguments = {field.name: plain(getattr(value, field.name)) for field in fields(value)}
        return {"class_path": _path(type(value)), "init_args": arguments}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or type(value) in (str, int, float, bool):
        return value
    raise TypeError(f"a recorded argument must be plain data or a recorded part, not {type(value).__name__}")


def _present(part: Any, value: Any) -> Any:
    """A part's current recipe, or that of all in a list, dataclasses too; the recorded ``value`` if it is no part."""
    if isinstance(part, Recorded):
        return part.recipe
    if isinstance(value, list) and isinstance(part, Iterable):
        several = list(part)
        if several and all(isinstance(each, Recorded) or is_dataclass(each) for each in several):
            return [plain(each) for each in several]
    return value


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def recording(init: Callable[..., None], attribute: str, convert: Callable[[Any], Any]) -> Callable[..., None]:
    """Wrap a constructor to store its arguments, defaults included: name -> ``convert(value)``, in ``attribute``.

    If a subclass has a constructor of its own, the subclass's arguments are stored.
    """
    signature = inspect.signature(init)

    @functools.wraps(init)
    def recording_init(self: Any, *args: Any, **kwargs: Any) -> None:
        if attribute not in self.__dict__:
            bound = signature.bind(self, *args, **kwargs)
            bound.apply_defaults()
            self.__dict__[attribute] = {name: convert(value) for name, value in list(bound.arguments.items())[1:]}
        init(self, *args, **kwargs)

    return recording_init
