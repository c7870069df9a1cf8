"""Interactions: somebody uses a command, a menu, a select or a field that completes; and what the bot answers."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from tests.discord_server import gateway as gw
from tests.discord_server.actions import Actions
from tests.discord_server.commands import CHAT_INPUT, MESSAGE, Commands, chosen_options
from tests.discord_server.permissions import BITS
from tests.discord_server.render import channel_json, member_json, message_json, user_json
from tests.discord_server.world import Channel, Json, Message, User

COMMAND, COMPONENT, AUTOCOMPLETE = 2, 3, 4  # types of interactions
ANSWER, DEFER, DEFER_UPDATE, UPDATE, CHOICES, MODAL = 4, 5, 6, 7, 8, 9  # types of callbacks

KEPT: Final = 10_000
BUTTON, STRING_SELECT = 2, 3


@dataclass(slots=True, eq=False)
class Interaction:
    """One use of a command or component, and all that the bot answered to it."""

    id: int
    token: str
    kind: int
    channel: Channel
    user: User
    locale: str
    data: Json
    source: Message | None = None  # the message whose component was used
    deadline_s: float = 3.0
    callback: int | None = None  # the type of the first answer
    message: Message | None = None  # the answer (``@original``)
    followups: list[Message] = field(default_factory=list)
    choices: list[Json] | None = None
    modal: Json | None = None
    deferred: bool = False
    ephemeral: bool = False
    created_at_monotonic: float = field(default_factory=time.monotonic)
    answered_at_monotonic: float | None = None  # the first callback
    responded_at_monotonic: float | None = None  # the text itself: with the callback, or later if it was deferred

    @property
    def answered(self) -> bool:
        return self.callback is not None

    @property
    def expired(self) -> bool:
        """Nobody answered in time: the user was told that the application did not respond."""
        return not self.answered and time.monotonic() - self.created_at_monotonic > self.deadline_s

    @property
    def response(self) -> Json | None:
        """What the answer says now: the first answer's data with all edits; None while there is none."""
        if self.message is None or self.message.loading or self.responded_at_monotonic is None:
            return None
        return self.message.payload


class Interactions:
    """Makes interactions, sends them to the bot, and finds them again when it answers."""

    def __init__(self, actions: Actions, commands: Commands, deadline_s: float) -> None:
        self._actions = actions
        self._world = actions.world
        self._commands = commands
        self._deadline_s = deadline_s
        self._by_token: OrderedDict[str, Interaction] = OrderedDict()

    def find(self, token: str) -> Interaction | None:
        return self._by_token.get(token)

    def command(self, channel: Channel, user: User, name: str, options: Json, locale: str) -> Interaction:
        data = self._slash(channel, name, options, None)
        return self._send(self._made(COMMAND, channel, user, locale, data))

    def autocomplete(
        self, channel: Channel, user: User, name: str, options: Json, focused: str, locale: str
    ) -> Interaction:
        data = self._slash(channel, name, options, focused)
        return self._send(self._made(AUTOCOMPLETE, channel, user, locale, data))

    def _slash(self, channel: Channel, name: str, options: Json, focused: str | None) -> Json:
        words = name.split(" ")
        command = self._registered(channel, CHAT_INPUT, words[0])
        return _command_data(command) | {"options": chosen_options(command, words[1:], options, focused)}

    def context_menu(self, channel: Channel, user: User, name: str, message: Message, locale: str) -> Interaction:
        command = self._registered(channel, MESSAGE, name)
        shown = message_json(self._world, message, site=self._actions.site)
        data = _command_data(command) | {
            "target_id": str(message.id),
            "resolved": {"messages": {str(message.id): shown}},
        }
        return self._send(self._made(COMMAND, channel, user, locale, data))

    def _registered(self, channel: Channel, kind: int, name: str) -> Json:
        command = self._commands.find(channel.guild.id if channel.guild else None, kind, name)
        contexts = command.get("contexts")
        if contexts is None:
            offered = channel.guild is not None or command.get("dm_permission", True)
        else:
            offered = (0 if channel.guild else 1) in contexts
        assert offered, f"command {name!r} is not offered in this kind of channel"
        return command

    def choose(self, source: Message, user: User, custom_id: str, values: list[str], locale: str) -> Interaction:
        component = _component(source, custom_id)
        data: Json = {"custom_id": custom_id, "component_type": component["type"], "id": 1}
        if component["type"] != BUTTON:
            _check_values(component, values)
            data["values"] = values
        made = self._made(COMPONENT, source.channel, user, locale, data)
        made.source = source
        return self._send(made)

    def _made(self, kind: int, channel: Channel, user: User, locale: str, data: Json) -> Interaction:
        number, token = self._world.snowflake(), secrets.token_urlsafe(96)
        made = Interaction(number, token, kind, channel, user, locale, data, deadline_s=self._deadline_s)
        self._by_token[made.token] = made
        if len(self._by_token) > KEPT:
            self._by_token.popitem(last=False)
        return made

    def _send(self, interaction: Interaction) -> Interaction:
        data = self._json(interaction)
        self._actions.gateway.publish("INTERACTION_CREATE", gw.ALWAYS, lambda reads: data)
        return interaction

    def _json(self, interaction: Interaction) -> Json:
        channel = interaction.channel
        data: Json = {
            "id": str(interaction.id),
            "application_id": str(self._world.bot.id),
            "type": interaction.kind,
            "token": interaction.token,
            "version": 1,
            "data": interaction.data,
            "channel_id": str(channel.id),
            "channel": channel_json(self._world, channel) | {"permissions": str(self._user_permissions(interaction))},
            "locale": interaction.locale,
            "app_permissions": str(self._world.bot_permissions(channel)),
            "entitlements": [],
            "attachment_size_limit": 10 * 1024 * 1024,
            **self._where(interaction),
        }
        if interaction.source is not None:
            data["message"] = message_json(self._world, interaction.source, site=self._actions.site)
        return data

    def _where(self, interaction: Interaction) -> Json:
        guild = interaction.channel.guild
        if guild is None:
            return {
                "user": user_json(interaction.user),
                "context": 1,
                "authorizing_integration_owners": {"0": "0"},
            }
        member = member_json(guild.members[interaction.user.id])
        return {
            "member": member | {"permissions": str(self._user_permissions(interaction))},
            "guild_id": str(guild.id),
            "guild": {"id": str(guild.id), "locale": guild.locale, "features": []},
            "guild_locale": guild.locale,
            "context": 0,
            "authorizing_integration_owners": {"0": str(guild.id)},
        }

    def _user_permissions(self, interaction: Interaction) -> int:
        guild = interaction.channel.guild
        everything = sum(BITS.values())
        if guild is None or interaction.user.id == guild.owner_id:
            return everything
        own = guild.permissions_of(interaction.user.id)
        return everything if own & BITS["administrator"] else own


def metadata(interaction: Interaction) -> Json:
    """What a message that answers an interaction tells of it."""
    owners = {"0": str(interaction.channel.guild.id) if interaction.channel.guild else "0"}
    kind = {"id": str(interaction.id), "type": interaction.kind, "user": user_json(interaction.user)}
    data: Json = {"interaction_metadata": kind | {"authorizing_integration_owners": owners}}
    if interaction.kind == COMMAND:
        data["interaction"] = kind | {"name": interaction.data["name"]}
        if "target_id" in interaction.data:
            data["interaction_metadata"]["target_message_id"] = interaction.data["target_id"]
    elif interaction.source is not None:
        data["interaction_metadata"]["interacted_message_id"] = str(interaction.source.id)
    return data


def _command_data(command: Json) -> Json:
    data = {"id": command["id"], "name": command["name"], "type": command["type"]}
    return data | ({"guild_id": command["guild_id"]} if "guild_id" in command else {})


def _component(message: Message, custom_id: str) -> Json:
    for component in _all_components(message.components):
        if component.get("custom_id") == custom_id:
            assert not component.get("disabled"), f"component {custom_id!r} is disabled"
            return component
    known = [one["custom_id"] for one in _all_components(message.components) if "custom_id" in one]
    raise AssertionError(f"the message has no component {custom_id!r}; it has {known}")


def _all_components(components: list[Json]) -> Iterator[Json]:
    for component in components:
        yield component
        yield from _all_components(component.get("components") or [])
        if "accessory" in component:
            yield component["accessory"]


def _check_values(component: Json, values: list[Any]) -> None:
    least, most = component.get("min_values", 1), component.get("max_values", 1)
    assert least <= len(values) <= most, f"{least} to {most} values can be chosen, not {len(values)}"
    if component["type"] == STRING_SELECT:
        offered = [option["value"] for option in component["options"]]
        assert set(values) <= set(offered), f"{values} are not all among {offered}"
