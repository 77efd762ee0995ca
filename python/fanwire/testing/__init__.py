"""What an app's own tests need of fanwire: a recorder in the place of a broker, and fixtures.

The fixtures ``fanwire_memory``, ``fanwire_recording`` and ``fanwire_redis`` are in
``fanwire.testing.plugin``, which pytest finds by itself where fanwire is installed. Nothing here
imports pytest, so that the recorder works under any test runner.
"""

from fanwire.testing.recording import RecordingPubSub

__all__ = ["RecordingPubSub", "TestPubSub"]

TestPubSub = RecordingPubSub
"""The name that PyView's guide uses. pytest does not take it for a test."""
