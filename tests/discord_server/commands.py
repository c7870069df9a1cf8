"""Application commands: what a bot may register, checked by Discord's rules, and how they are found again."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from typing import Any, Final

from tests.discord_server.errors import ApiError, form_error
from tests.discord_server.world import Json, Snowflakes

CHAT_INPUT, USER, MESSAGE = 1, 2, 3
SUB_COMMAND, SUB_COMMAND_GROUP, STRING, INTEGER, BOOLEAN, NUMBER = 1, 2, 3, 4, 5, 10

MAX_COMMANDS: Final = {CHAT_INPUT: 100, USER: 15, MESSAGE: 15}
MAX_CHARACTERS: Final = 8000
# fmt: off
LOCALES: Final = frozenset((
    "id", "da", "de", "en-GB", "en-US", "es-ES", "es-419", "fr", "hr", "it", "lt", "hu", "nl", "no", "pl", "pt-BR",
    "ro", "fi", "sv-SE", "vi", "tr", "cs", "el", "bg", "ru", "uk", "hi", "th", "zh-CN", "ja", "zh-TW", "ko",
))
# fmt: on


def is_name(name: Any, lower: bool = True) -> bool:
    """``^[-_'\\p{L}\\p{N}\\p{sc=Deva}\\p{sc=Thai}]{1,32}$``, and no capitals where there are small letters."""
    if not isinstance(name, str) or not 1 <= len(name) <= 32:
        return False
    return all(_may_stand_in_name(letter) for letter in name) and (not lower or name == name.lower())


def _may_stand_in_name(letter: str) -> bool:
    if letter in "-_'" or unicodedata.category(letter)[0] in "LN":
        return True
    return unicodedata.name(letter, "").startswith(("DEVANAGARI", "THAI"))


class Commands:
    """The registered commands: those for everywhere (key None), and those of single guilds."""

    def __init__(self, application_id: int, snowflake: Snowflakes) -> None:
        self._application_id = application_id
        self._snowflake = snowflake
        self._registered: dict[int | None, list[Json]] = {}

    def all(self) -> list[Json]:
        return [command for scope in self._registered.values() for command in scope]

    def of(self, guild_id: int | None) -> list[Json]:
        return self._registered.get(guild_id, [])

    def replace(self, guild_id: int | None, wanted: Any) -> list[Json]:
        """Put a whole list in place of the one before; a command of the same type and name keeps its id."""
        if not isinstance(wanted, list):
            raise form_error("_", "LIST_TYPE_CONVERT", "Only iterables may be used in a ListType")
        for place, command in enumerate(wanted):
            _check_command(command, str(place))
        for kind, most in MAX_COMMANDS.items():
            if sum(command.get("type", CHAT_INPUT) == kind for command in wanted) > most:
                raise ApiError(400, 30032, f"Maximum number of application commands reached ({most})")
        keys = [(command.get("type", CHAT_INPUT), command["name"]) for command in wanted]
        if len(set(keys)) < len(keys):
            raise form_error("_", "APPLICATION_COMMANDS_DUPLICATE_NAME", "Application command names must be unique")
        before = {(command["type"], command["name"]): command["id"] for command in self.of(guild_id)}
        made = [self._made(command, guild_id, before.get(key)) for key, command in zip(keys, wanted, strict=True)]
        self._registered[guild_id] = made
        return made

    def _made(self, command: Json, guild_id: int | None, number: str | None) -> Json:
        made = {"description": "", "default_member_permissions": None, "nsfw": False, "type": CHAT_INPUT, **command}
        permissions = made["default_member_permissions"]
        made["default_member_permissions"] = None if permissions is None else str(permissions)
        made |= {
            "id": number or str(self._snowflake()),
            "application_id": str(self._application_id),
            "version": str(self._snowflake()),
        }
        return made | ({"guild_id": str(guild_id)} if guild_id is not None else {})

    def find(self, guild_id: int | None, kind: int, name: str) -> Json:
        """The command that somebody there sees under this name; a guild's own comes first."""
        scopes = [self.of(guild_id), self.of(None)] if guild_id is not None else [self.of(None)]
        for command in (one for scope in scopes for one in scope):
            if command["type"] == kind and command["name"] == name:
                return command
        known = ", ".join(repr(command["name"]) for command in self.all()) or "none"
        raise AssertionError(f"no command {name!r} of type {kind} is registered here; registered: {known}")


def _check_command(command: Any, path: str) -> None:
    if not isinstance(command, dict):
        raise form_error(path, "DICT_TYPE_CONVERT", "Only dictionaries may be used in a DictType")
    kind = command.get("type", CHAT_INPUT)
    if kind not in MAX_COMMANDS:
        raise form_error(f"{path}.type", "BASE_TYPE_CHOICES", "Value must be one of (1, 2, 3).")
    if kind == CHAT_INPUT:
        _check_words(command, path)
        _check_options(command.get("options", []), f"{path}.options")
    else:
        _check_context_menu(command, path)
    if sum(_lengths(command)) > MAX_CHARACTERS:
        raise form_error(path, "APPLICATION_COMMAND_TOO_LARGE", "Command exceeds maximum size (8000)")


def _check_context_menu(command: Json, path: str) -> None:
    """A command in a message's menu has a label, in which there may be blanks and capitals, and nothing else."""
    for key, name in [("name", command.get("name")), *_localized(command, "name", path)]:
        if not isinstance(name, str) or not 1 <= len(name) <= 32:
            raise form_error(f"{path}.{key}", "BASE_TYPE_BAD_LENGTH", "Must be between 1 and 32 in length.")
    if command.get("description"):
        raise form_error(
            f"{path}.description",
            "APPLICATION_COMMAND_CONTEXT_MENU_DESCRIPTION_INVALID",
            "Context menu commands cannot have description",
        )
    if command.get("options"):
        raise form_error(
            f"{path}.options",
            "APPLICATION_COMMAND_CONTEXT_MENU_OPTIONS_INVALID",
            "Context menu commands cannot have options",
        )


def _localized(thing: Json, key: str, path: str) -> Iterator[tuple[str, Any]]:
    localizations = thing.get(f"{key}_localizations") or {}
    for locale, text in localizations.items():
        if locale not in LOCALES:
            raise form_error(f"{path}.{key}_localizations.{locale}", "BASE_TYPE_CHOICES", "Value must be a locale.")
        yield f"{key}_localizations.{locale}", text


def _check_words(thing: Json, path: str) -> None:
    """The name and the description of a slash command or an option, in each language."""
    for key, name in [("name", thing.get("name")), *_localized(thing, "name", path)]:
        if not is_name(name):
            raise form_error(f"{path}.{key}", "APPLICATION_COMMAND_INVALID_NAME", "Command name is invalid")
    for key, text in [("description", thing.get("description")), *_localized(thing, "description", path)]:
        if not isinstance(text, str) or not 1 <= len(text) <= 100:
            raise form_error(f"{path}.{key}", "BASE_TYPE_BAD_LENGTH", "Must be between 1 and 100 in length.")


def _check_options(options: list[Json], path: str) -> None:
    if len(options) > 25:
        raise form_error(path, "BASE_TYPE_MAX_LENGTH", "Must be 25 or fewer in length.")
    names = [option.get("name") for option in options]
    if len(set(names)) < len(names):
        raise form_error(path, "APPLICATION_COMMAND_OPTIONS_NAME_ALREADY_EXISTS", "Option name already exists")
    required = [bool(option.get("required")) for option in options]
    if required != sorted(required, reverse=True):
        raise form_error(
            path,
            "APPLICATION_COMMAND_OPTIONS_REQUIRED_INVALID",
            "Required options must be placed before non-required options",
        )
    for place, option in enumerate(options):
        _check_option(option, f"{path}.{place}")


def _check_option(option: Json, path: str) -> None:
    _check_words(option, path)
    if option.get("type") not in range(1, 12):
        raise form_error(f"{path}.type", "BASE_TYPE_CHOICES", "Value must be one of (1, 2, …, 11).")
    choices = option.get("choices") or []
    if len(choices) > 25:
        raise form_error(f"{path}.choices", "BASE_TYPE_MAX_LENGTH", "Must be 25 or fewer in length.")
    if choices and option.get("autocomplete"):
        raise form_error(f"{path}.autocomplete", "APPLICATION_COMMAND_OPTIONS_CHOICES_AUTOCOMPLETE", "Choices are set")
    check_choices(choices, f"{path}.choices")
    _check_options(option.get("options") or [], f"{path}.options")


def check_choices(choices: list[Json], path: str) -> None:
    for place, choice in enumerate(choices):
        for key, name in [("name", choice.get("name")), *_localized(choice, "name", f"{path}.{place}")]:
            if not isinstance(name, str) or not 1 <= len(name) <= 100:
                raise form_error(
                    f"{path}.{place}.{key}", "BASE_TYPE_BAD_LENGTH", "Must be between 1 and 100 in length."
                )
        value = choice.get("value")
        if value is None or (isinstance(value, str) and len(value) > 100):
            raise form_error(f"{path}.{place}.value", "BASE_TYPE_MAX_LENGTH", "Must be 100 or fewer in length.")


def _lengths(thing: Json) -> Iterator[int]:
    """What counts to the size of a command: names, descriptions and values, each in its longest language."""
    for key in ("name", "description"):
        localized: Json = thing.get(f"{key}_localizations") or {}
        yield max(len(text) for text in (thing.get(key) or "", *localized.values()))
    yield from (len(str(choice.get("value", ""))) + len(choice["name"]) for choice in thing.get("choices") or ())
    for option in thing.get("options") or ():
        yield from _lengths(option)


def chosen_options(command: Json, words: list[str], given: Json, focused: str | None) -> list[Json]:
    """The options of an interaction, as Discord sends what somebody typed. Mistakes of the test are said clearly."""
    if words:
        option = _option(command, words[0])
        inner = chosen_options(option, words[1:], given, focused)
        return [{"name": option["name"], "type": option["type"], "options": inner}]
    missing = [one["name"] for one in command.get("options") or () if one.get("required") and one["name"] not in given]
    if missing and focused is None:
        raise AssertionError(f"required options are missing: {', '.join(missing)}")
    return [_chosen(_option(command, name), value, name == focused) for name, value in given.items()]


def _option(command: Json, name: str) -> Json:
    options: list[Json] = command.get("options") or []
    for option in options:
        if option["name"] == name:
            return option
    raise AssertionError(f"{command['name']!r} has no option {name!r}; it has {[one['name'] for one in options]}")


_TYPES: Final[dict[int, tuple[type, ...]]] = {STRING: (str,), INTEGER: (int,), BOOLEAN: (bool,), NUMBER: (int, float)}


def _chosen(option: Json, value: Any, focused: bool) -> Json:
    name, kind = option["name"], option["type"]
    if focused:
        assert option.get("autocomplete"), f"option {name!r} is not registered with autocomplete"
        return {"name": name, "type": kind, "value": value, "focused": True}
    assert isinstance(value, _TYPES.get(kind, (str,))), f"option {name!r} of type {kind} cannot be {value!r}"
    choices = [choice["value"] for choice in option.get("choices") or ()]
    assert not choices or value in choices, f"option {name!r} is one of {choices}, not {value!r}"
    if kind == STRING:
        least, most = option.get("min_length", 0), option.get("max_length", 6000)
        assert least <= len(str(value)) <= most, f"option {name!r} has {least} to {most} characters"
    return {"name": name, "type": kind, "value": value}
