"""The exceptions of fanwire. Each also derives from the built-in that one would catch anyway."""

__all__ = ["BrokerError", "BrokerTimeoutError", "ConfigError", "Error", "PublishError"]


class Error(Exception):
    """Base of every exception that fanwire defines."""


class ConfigError(Error, ValueError):
    """A URL or an option makes no sense; the text names it (a password in a URL is masked)."""


class BrokerError(Error, ConnectionError):
    """A broker refused for good: wrong password, no permission, or not a broker at all."""


class BrokerTimeoutError(BrokerError, TimeoutError):
    """The broker did not answer in time. Raised by ``start()`` with ``strict=True``."""


class PublishError(Error, ConnectionError):
    """A message did not reach the broker. Raised only by a publisher with ``strict=True``."""
