"""REST: what each route does with the world. Pure functions of a read request; the server does the HTTP around them."""

from __future__ import annotations

import copy
import time
from collections import OrderedDict
from typing import Any, Final

from tests.discord_server.actions import Actions
from tests.discord_server.commands import Commands, check_choices
from tests.discord_server.errors import ApiError, form_error, missing_access, missing_permissions, unknown
from tests.discord_server.forms import (
    MAX_REACTIONS,
    check_content,
    check_embeds,
    check_emoji,
    check_nonce,
    kept_attachments,
    sent_files,
)
from tests.discord_server.interactions import (
    ANSWER,
    AUTOCOMPLETE,
    CHOICES,
    COMMAND,
    COMPONENT,
    DEFER,
    DEFER_UPDATE,
    MODAL,
    UPDATE,
    Interaction,
    Interactions,
    metadata,
)
from tests.discord_server.render import (
    application_json,
    channel_json,
    emoji_key,
    guild_json,
    member_json,
    own_json,
    user_json,
)
from tests.discord_server.routes import NO_CONTENT, Answer, Call, Routes
from tests.discord_server.world import (
    CONTEXT_MENU_REPLY,
    EPHEMERAL,
    FORUM,
    HAS_SNAPSHOT,
    LOADING,
    REPLY,
    SLASH_REPLY,
    Channel,
    Guild,
    Json,
    Message,
)

NONCES_KEPT: Final = 10_000
NONCE_S: Final = 300.0  # "the past few minutes"
REPLIABLE: Final = (0, REPLY, SLASH_REPLY, CONTEXT_MENU_REPLY)  # one cannot reply to the others: Discord wrote them

routes = Routes()
DONE: Final = Answer(NO_CONTENT)


class Rest:
    def __init__(self, actions: Actions, commands: Commands, interactions: Interactions) -> None:
        self._actions = actions
        self._world = actions.world
        self._commands = commands
        self._interactions = interactions
        self._nonces: OrderedDict[str, tuple[float, Message]] = OrderedDict()

    def forget_nonces(self) -> None:
        self._nonces.clear()

    # Finding things, and whether the bot may.

    def _channel(self, call: Call) -> Channel:
        channel = self._world.channels.get(call.number("channel"))
        if channel is None:
            raise unknown("Channel")
        if not self._world.bot_may(channel, "view_channel"):
            raise missing_access()
        return channel

    def _message(self, call: Call) -> Message:
        message = self._channel(call).find(call.number("message"))
        if message is None or message.ephemeral:
            raise unknown("Message")
        return message

    def _guild(self, call: Call) -> Guild:
        guild = self._world.guilds.get(call.number("guild"))
        if guild is None:
            raise unknown("Guild")
        return guild

    def _need(self, channel: Channel, *names: str) -> None:
        if not all(self._world.bot_may(channel, name) for name in names):
            raise missing_permissions()

    def _need_to_send(self, channel: Channel) -> None:
        if channel.guild is None and not self._world.bot_may(channel, "send_messages"):
            raise ApiError(403, 50007, "Cannot send messages to this user")
        self._need(channel, "send_messages_in_threads" if channel.is_thread else "send_messages")

    # The application and its users.

    @routes.add("GET", "/gateway", open=True)
    def gateway(self, call: Call) -> Answer:
        return Answer(200, {"url": self._actions.site.replace("http", "ws", 1)})

    @routes.add("GET", "/gateway/bot")
    def gateway_bot(self, call: Call) -> Answer:
        limit = {"total": 1000, "remaining": 1000, "reset_after": 86_400_000, "max_concurrency": 1}
        url = self._actions.site.replace("http", "ws", 1)
        return Answer(200, {"url": url, "shards": 1, "session_start_limit": limit})

    @routes.add("GET", "/users/@me")
    def me(self, call: Call) -> Answer:
        return Answer(200, own_json(self._world))

    @routes.add("GET", "/users/{user}")
    def user(self, call: Call) -> Answer:
        user = self._world.users.get(call.number("user"))
        if user is None:
            raise unknown("User")
        return Answer(200, user_json(user))

    @routes.add("POST", "/users/@me/channels")
    def open_direct(self, call: Call) -> Answer:
        user = self._world.users.get(int(call.form.get("recipient_id") or 0))
        if user is None or user is self._world.bot:
            raise ApiError(400, 50033, "Invalid Recipient(s)")
        return Answer(200, channel_json(self._world, self._world.direct(user)))

    @routes.add("GET", "/oauth2/applications/@me")
    @routes.add("GET", "/applications/@me")
    def application(self, call: Call) -> Answer:
        return Answer(200, application_json(self._world, self._actions.application_flags))

    # Guilds and channels.

    @routes.add("GET", "/guilds/{guild}")
    def guild(self, call: Call) -> Answer:
        return Answer(200, guild_json(self._world, self._guild(call)))

    @routes.add("GET", "/guilds/{guild}/channels")
    def guild_channels(self, call: Call) -> Answer:
        channels = [one for one in self._guild(call).channels.values() if not one.is_thread]
        return Answer(200, [channel_json(self._world, one) for one in channels])

    @routes.add("GET", "/guilds/{guild}/members/{user}")
    def member(self, call: Call) -> Answer:
        member = self._guild(call).members.get(call.number("user"))
        if member is None:
            raise unknown("Member")
        return Answer(200, member_json(member))

    @routes.add("GET", "/channels/{channel}")
    def channel(self, call: Call) -> Answer:
        return Answer(200, channel_json(self._world, self._channel(call)))

    @routes.add("POST", "/channels/{channel}/typing")
    def typing(self, call: Call) -> Answer:
        self._need_to_send(self._channel(call))
        return DONE

    @routes.add("PUT", "/channels/{channel}/thread-members/@me")
    def join_thread(self, call: Call) -> Answer:
        self._channel(call)
        return DONE

    # Messages.

    @routes.add("GET", "/channels/{channel}/messages/{message}")
    def message(self, call: Call) -> Answer:
        self._need(self._channel(call), "read_message_history")
        return Answer(200, self._actions.rest_json(self._message(call)))

    @routes.add("GET", "/channels/{channel}/messages")
    def messages(self, call: Call) -> Answer:
        channel = self._channel(call)
        if not self._world.bot_may(channel, "read_message_history"):
            return Answer(200, [])
        limit = int(call.query.get("limit", 50))
        if not 1 <= limit <= 100:
            raise form_error("limit", "NUMBER_TYPE_MAX", "int value should be between 1 and 100.")
        present = [one for one in channel.messages.values() if not one.deleted and not one.ephemeral]
        chosen = _page(present, call, limit)
        return Answer(200, [self._actions.rest_json(one) for one in reversed(chosen)])

    @routes.add("POST", "/channels/{channel}/messages")
    def post_message(self, call: Call) -> Answer:
        channel = self._channel(call)
        if channel.kind == FORUM:
            raise ApiError(400, 50008, "Cannot send messages in a non-text channel")
        self._need_to_send(channel)
        nonce = check_nonce(call.form.get("nonce"))
        if nonce is not None and call.form.get("enforce_nonce"):
            earlier = self._earlier(nonce)
            if earlier is not None:
                return Answer(200, self._actions.rest_json(earlier) | {"nonce": nonce})
        message = self._composed(channel, call)
        message.nonce = nonce
        self._refer(message, call.form)
        self._check_not_empty(message)
        self._actions.address(message, call.form.get("allowed_mentions"))
        if nonce is not None:
            self._remember(nonce, message)
        self._actions.create(message)
        return Answer(200, self._actions.rest_json(message) | ({} if nonce is None else {"nonce": nonce}))

    def _earlier(self, nonce: str) -> Message | None:
        at, message = self._nonces.get(nonce, (0.0, None))
        return message if message is not None and time.monotonic() - at < NONCE_S else None

    def _remember(self, nonce: str, message: Message) -> None:
        self._nonces[nonce] = (time.monotonic(), message)
        if len(self._nonces) > NONCES_KEPT:
            self._nonces.popitem(last=False)

    def _composed(self, channel: Channel, call: Call) -> Message:
        """A message of the bot's from what was sent, not yet stored."""
        form = call.form
        message = Message(self._world.snowflake(), channel, self._world.bot, check_content(form.get("content")))
        message.embeds = check_embeds(form.get("embeds"))
        message.components = form.get("components") or []
        message.flags = int(form.get("flags") or 0) & ~LOADING & ~EPHEMERAL
        self._attach(message, sent_files(form, call.files))
        if message.embeds:
            self._need(channel, "embed_links")
        if message.attachments:
            self._need(channel, "attach_files")
        return message

    def _attach(self, message: Message, files: list[tuple[str, bytes]]) -> None:
        message.attachments += files
        message.attachment_ids += [self._world.snowflake() for _ in files]

    def _refer(self, message: Message, form: Json) -> None:
        """Make it a reply or a forward, if it is to be one."""
        reference = form.get("message_reference")
        if not reference:
            return
        place = self._world.channels.get(int(reference.get("channel_id") or message.channel.id))
        target = place.find(int(reference.get("message_id") or 0)) if place is not None else None
        forward = reference.get("type", 0) == 1
        if place is not message.channel and not forward:
            raise form_error(
                "message_reference",
                "REPLIES_CANNOT_REFERENCE_OTHER_CHANNEL",
                "Cannot reply to a message in a different channel",
            )
        if not self._world.bot_may(message.channel, "read_message_history"):
            raise ApiError(403, 160002, "Cannot reply without permission to read message history")
        if target is None or target.ephemeral:
            if forward or reference.get("fail_if_not_exists", True):
                raise form_error("message_reference", "REPLIES_UNKNOWN_MESSAGE", "Unknown message")
        elif forward:
            message.forwarded = copy.copy(target)
            message.flags |= HAS_SNAPSHOT
        elif target.kind not in REPLIABLE:
            code = "REPLIES_CANNOT_REFERENCE_SYSTEM_MESSAGE"
            raise form_error("message_reference", code, "Cannot reply to a system message")
        else:
            message.kind, message.replied, message.reply_to = REPLY, target, target.id

    def _check_not_empty(self, message: Message) -> None:
        if not (message.content or message.embeds or message.attachments or message.components or message.forwarded):
            raise ApiError(400, 50006, "Cannot send an empty message")

    @routes.add("PATCH", "/channels/{channel}/messages/{message}")
    def edit_message(self, call: Call) -> Answer:
        message = self._message(call)
        if message.author is not self._world.bot:
            raise ApiError(403, 50005, "Cannot edit a message authored by another user")
        self._change(message, call, call.form)
        self._actions.update(message, edited=True)
        return Answer(200, self._actions.rest_json(message))

    def _change(self, message: Message, call: Call, form: Json) -> None:
        """Put what an edit gives in place of what was there; on an error nothing changes."""
        after = copy.copy(message)
        if "content" in form:
            after.content = check_content(form["content"])
        if "embeds" in form:
            after.embeds = check_embeds(form["embeds"])
        if "components" in form:
            after.components = form["components"] or []
        kept = set(kept_attachments(form, message.attachment_ids))
        both = [pair for pair in zip(message.attachment_ids, message.attachments, strict=True) if pair[0] in kept]
        after.attachment_ids, after.attachments = [one for one, _ in both], [one for _, one in both]
        self._attach(after, sent_files(form, call.files))
        self._check_not_empty(after)
        message.content, message.embeds, message.components = after.content, after.embeds, after.components
        message.attachment_ids, message.attachments = after.attachment_ids, after.attachments
        if "content" in form or "allowed_mentions" in form:
            self._actions.address(message, form.get("allowed_mentions"))

    @routes.add("DELETE", "/channels/{channel}/messages/{message}")
    def delete_message(self, call: Call) -> Answer:
        message = self._message(call)
        if message.author is not self._world.bot:
            self._need(message.channel, "manage_messages")
        self._actions.delete(message)
        return DONE

    @routes.add("POST", "/channels/{channel}/messages/bulk-delete")
    def delete_messages(self, call: Call) -> Answer:
        channel = self._channel(call)
        self._need(channel, "manage_messages")
        ids = call.form.get("messages") or []
        if not 2 <= len(ids) <= 100:
            raise ApiError(400, 50016, "Provided too few or too many messages to delete.")
        found = [channel.find(int(one)) for one in ids]
        self._actions.delete_many([one for one in found if one is not None])
        return DONE

    # Reactions.

    @routes.add("PUT", "/channels/{channel}/messages/{message}/reactions/{emoji}/@me")
    def add_reaction(self, call: Call) -> Answer:
        message, key = self._message(call), check_emoji(emoji_key(call.args["emoji"]))
        self._need(message.channel, "read_message_history")
        if key not in message.reactions:
            # Whoever follows another's reaction needs no permission for it.
            self._need(message.channel, "add_reactions")
            if len(message.reactions) >= MAX_REACTIONS:
                raise ApiError(403, 30010, f"Maximum number of reactions reached ({MAX_REACTIONS})")
        self._actions.react(message, self._world.bot, key)
        return DONE

    @routes.add("DELETE", "/channels/{channel}/messages/{message}/reactions/{emoji}/{user}")
    def remove_reaction(self, call: Call) -> Answer:
        message, key = self._message(call), check_emoji(emoji_key(call.args["emoji"]))
        user_id = self._world.bot.id if call.args["user"] == "@me" else call.number("user")
        if user_id != self._world.bot.id:
            self._need(message.channel, "manage_messages")
        self._actions.unreact(message, user_id, key)
        return DONE

    @routes.add("GET", "/channels/{channel}/messages/{message}/reactions/{emoji}")
    def reaction_users(self, call: Call) -> Answer:
        message, after = self._message(call), int(call.query.get("after", 0))
        ids = [one for one in message.reactions.get(emoji_key(call.args["emoji"]), []) if one > after]
        users = [self._world.users[one] for one in ids if one in self._world.users]
        return Answer(200, [user_json(one) for one in users[: int(call.query.get("limit", 25))]])

    @routes.add("DELETE", "/channels/{channel}/messages/{message}/reactions/{emoji}")
    def remove_emoji(self, call: Call) -> Answer:
        message = self._message(call)
        self._need(message.channel, "manage_messages")
        self._actions.clear_emoji(message, emoji_key(call.args["emoji"]))
        return DONE

    @routes.add("DELETE", "/channels/{channel}/messages/{message}/reactions")
    def remove_reactions(self, call: Call) -> Answer:
        message = self._message(call)
        self._need(message.channel, "manage_messages")
        self._actions.clear_reactions(message)
        return DONE

    # Commands.

    def _scope(self, call: Call) -> int | None:
        if call.number("application") != self._world.bot.id:
            raise ApiError(403, 20012, "You are not authorized to perform this action on this application")
        return self._guild(call).id if "guild" in call.args else None

    @routes.add("PUT", "/applications/{application}/commands")
    @routes.add("PUT", "/applications/{application}/guilds/{guild}/commands")
    def put_commands(self, call: Call) -> Answer:
        return Answer(200, self._commands.replace(self._scope(call), call.json))

    @routes.add("GET", "/applications/{application}/commands")
    @routes.add("GET", "/applications/{application}/guilds/{guild}/commands")
    def get_commands(self, call: Call) -> Answer:
        return Answer(200, self._commands.of(self._scope(call)))

    # Interactions.

    @routes.add("POST", "/interactions/{interaction}/{token}/callback", open=True)
    def callback(self, call: Call) -> Answer:
        interaction = self._interactions.find(call.args["token"])
        if interaction is None or interaction.id != call.number("interaction") or interaction.expired:
            raise unknown("interaction")
        if interaction.answered:
            raise ApiError(400, 40060, "Interaction has already been acknowledged.")
        kind, data = int(call.form.get("type") or 0), call.form.get("data") or {}
        if kind not in _ALLOWED.get(interaction.kind, ()):
            raise form_error("type", "INTERACTION_CALLBACK_TYPE_INVALID", f"Not for this interaction: {kind}")
        self._answer(interaction, kind, data, call)
        interaction.callback = kind
        interaction.answered_at_monotonic = time.monotonic()
        if call.query.get("with_response", "").lower() in ("1", "true"):
            return Answer(200, self._callback_json(interaction))
        return DONE

    def _answer(self, interaction: Interaction, kind: int, data: Json, call: Call) -> None:
        if kind == CHOICES:
            choices = data.get("choices") or []
            if len(choices) > 25:
                raise form_error("data.choices", "BASE_TYPE_MAX_LENGTH", "Must be 25 or fewer in length.")
            check_choices(choices, "data.choices")
            interaction.choices = choices
        elif kind == MODAL:
            interaction.modal = data
        elif kind in (ANSWER, DEFER):
            interaction.deferred = kind == DEFER
            interaction.ephemeral = bool(int(data.get("flags") or 0) & EPHEMERAL)
            self._first_message(interaction, data, call)
        else:
            interaction.deferred = kind == DEFER_UPDATE
            interaction.message = interaction.source
            if kind == UPDATE:
                self._merge(interaction, data, call)

    def _first_message(self, interaction: Interaction, data: Json, call: Call) -> None:
        message = self._reply(interaction, data, call, loading=interaction.deferred)
        interaction.message = message
        if not interaction.deferred:
            interaction.responded_at_monotonic = message.created_at_monotonic

    def _reply(self, interaction: Interaction, data: Json, call: Call, loading: bool) -> Message:
        """A message that answers an interaction. It needs no permission in the channel."""
        message = Message(self._world.snowflake(), interaction.channel, self._world.bot, "")
        message.kind = _kind(interaction)
        message.webhook_id = self._world.bot.id
        message.interaction = metadata(interaction) | {"application_id": str(self._world.bot.id)}
        message.flags = int(data.get("flags") or 0) | (LOADING if loading else 0)
        if interaction.source is not None:
            message.replied, message.reply_to = interaction.source, interaction.source.id
        if not loading:
            self._fill(message, data, call)
        self._actions.create(message)
        return message

    def _fill(self, message: Message, data: Json, call: Call) -> None:
        self._change(message, call, data)
        message.payload = (message.payload or {}) | data
        self._actions.address(message, data.get("allowed_mentions", message.allowed_mentions))

    def _merge(self, interaction: Interaction, data: Json, call: Call) -> Message:
        """Edit the answer, or put the answer where one was awaited."""
        message = interaction.message
        if message is None or message.deleted:
            raise unknown("Message")
        self._fill(message, data, call)
        awaited = message.loading
        message.flags &= ~LOADING
        self._actions.update(message, edited=not awaited)
        if interaction.responded_at_monotonic is None:
            interaction.responded_at_monotonic = time.monotonic()
        return message

    def _callback_json(self, interaction: Interaction) -> Json:
        message = interaction.message
        about: Json = {"id": str(interaction.id), "type": interaction.kind}
        answer: Json = {"interaction": about}
        if message is not None and interaction.callback != DEFER_UPDATE:
            about |= {
                "response_message_id": str(message.id),
                "response_message_loading": message.loading,
                "response_message_ephemeral": message.ephemeral,
            }
            answer["resource"] = {"type": interaction.callback, "message": self._actions.rest_json(message)}
        return answer

    def _answered(self, call: Call) -> Interaction:
        interaction = self._interactions.find(call.args["token"])
        if interaction is None or call.number("application") != self._world.bot.id or not interaction.answered:
            raise unknown("Webhook")
        return interaction

    def _said(self, call: Call) -> tuple[Interaction, Message]:
        """One of the messages that an interaction was answered with."""
        interaction, number = self._answered(call), call.args["message"]
        candidates = [interaction.message, *interaction.followups]
        for message in candidates[:1] if number == "@original" else candidates:
            if message is not None and not message.deleted and number in ("@original", str(message.id)):
                return interaction, message
        raise unknown("Message")

    @routes.add("POST", "/webhooks/{application}/{token}", open=True)
    def follow_up(self, call: Call) -> Answer:
        interaction = self._answered(call)
        if interaction.message is not None and interaction.message.loading and not interaction.message.deleted:
            # The first followup after a deferral takes the place that was kept for the answer.
            return Answer(200, self._actions.rest_json(self._merge(interaction, call.form, call)))
        message = self._reply(interaction, call.form, call, loading=False)
        interaction.followups.append(message)
        return Answer(200, self._actions.rest_json(message))

    @routes.add("GET", "/webhooks/{application}/{token}/messages/{message}", open=True)
    def get_said(self, call: Call) -> Answer:
        return Answer(200, self._actions.rest_json(self._said(call)[1]))

    @routes.add("PATCH", "/webhooks/{application}/{token}/messages/{message}", open=True)
    def edit_said(self, call: Call) -> Answer:
        interaction, message = self._said(call)
        if message is interaction.message:
            self._merge(interaction, call.form, call)
        else:
            self._fill(message, call.form, call)
            self._actions.update(message, edited=True)
        return Answer(200, self._actions.rest_json(message))

    @routes.add("DELETE", "/webhooks/{application}/{token}/messages/{message}", open=True)
    def delete_said(self, call: Call) -> Answer:
        self._actions.delete(self._said(call)[1])
        return DONE


_ALLOWED: Final[dict[int, tuple[int, ...]]] = {
    COMMAND: (ANSWER, DEFER, MODAL),
    COMPONENT: (ANSWER, DEFER, DEFER_UPDATE, UPDATE, MODAL),
    AUTOCOMPLETE: (CHOICES,),
}


def _kind(interaction: Interaction) -> int:
    if interaction.kind == COMMAND:
        return CONTEXT_MENU_REPLY if "target_id" in interaction.data else SLASH_REPLY
    return REPLY


def _page(present: list[Message], call: Call, limit: int) -> list[Message]:
    """Some of the messages, oldest first: the newest, or those before, after or around one."""
    bounds: dict[str, Any] = {key: int(call.query[key]) for key in ("before", "after", "around") if key in call.query}
    if "after" in bounds:
        return [one for one in present if one.id > bounds["after"]][:limit]
    if "before" in bounds:
        return [one for one in present if one.id < bounds["before"]][-limit:]
    if "around" in bounds:
        first = max(0, sum(one.id < bounds["around"] for one in present) - limit // 2)
        return present[first : first + limit]
    return present[-limit:]
