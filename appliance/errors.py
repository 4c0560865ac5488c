"""Every exception the appliance raises on purpose.

ApplianceError
 ├ ConfigError            bad configuration; the process ends with exit code 2
 │  └ NotNowError        the same, and a later try may end well; as a service, exit code 75
 ├ NoEngineError          no engine can start; exit code 3
 ├ ChannelError           a frame that can't be read, or a peer of another version
 ├ ActionError            an engine can't be told to do that now
 ├ IncidentError          what is kept of incidents can't be read or written
 ├ HistoryError           the file of the node's history is another node's, or a newer version's
 ├ HandoffError           KV can't be shared between two engines
 └ RequestError           an answer in OpenAI's error shape, with an HTTP status
"""

from __future__ import annotations

from typing import Final

_SAID: Final = 200  # characters of what somebody has said, that are said back
_MESSAGE: Final = 1000  # characters of an error: whatever is in it that nobody cut


def quoted(text: str) -> str:
    """What somebody has said, for an error about it; of what is long its beginning."""
    return repr(text) if len(text) <= _SAID else f"{text[:_SAID]!r}… ({len(text):,} characters)"


def cut(text: str) -> str:
    """The same without quotes."""
    return text if len(text) <= _SAID else f"{text[:_SAID]}… ({len(text):,} characters)"


def shortened(message: str) -> str:
    """A message that is too long without its middle: what was wrong stands at its beginning, and what would be right at its end."""
    return message if len(message) <= _MESSAGE else f"{message[: _MESSAGE // 2]} … {message[-_MESSAGE // 2 :]}"


class ApplianceError(Exception):
    """Base of all of them. The message says what was wrong and what would be right."""


class ConfigError(ApplianceError):
    """A setting that can't work. Names the setting, its origin and the remedy."""


class NotNowError(ConfigError):
    """What a setting asks for can't be had at the moment: a port, an address, memory, a directory."""


class NoEngineError(ApplianceError):
    """Every engine failed to start. Names the cause."""


class ChannelError(ApplianceError):
    """An engine channel frame that is truncated, oversized, foreign or of another version."""


class ActionError(ApplianceError):
    """An engine can't be told to do that. Names the engine, what it does now, and what would be possible.

    ``unknown``: there is no such engine. ``invalid``: no engine ever can be told that.
    """

    def __init__(self, message: str, *, unknown: bool = False, invalid: bool = False) -> None:
        super().__init__(message)
        self.unknown = unknown
        self.invalid = invalid


class IncidentError(ApplianceError):
    """What is kept of incidents can't be read or written, or isn't there. Says why, and what would help."""


class HistoryError(ApplianceError):
    """The node's history can't be kept in its file. Says why, and what would help."""


class HandoffError(ApplianceError):
    """KV memory can't be shared, or what was to be copied can't be had. Names the engines, or what stands in the way."""


class RequestError(ApplianceError):
    """A request that is answered with an error in OpenAI's shape.

    Args:
        status: HTTP status code.
        message: for the client: what was wrong, and what would be right.
        kind: OpenAI's ``error.type``, e.g. ``invalid_request_error``.
        param: the offending field, where there is one.
        code: OpenAI's ``error.code``, where there is one.
        retry_after_s: seconds until a retry makes sense; sent as ``Retry-After``.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        self.message = shortened(message)
        super().__init__(self.message)
        self.status = status
        self.kind = kind
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, object]:
        """OpenAI's error object."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error}
