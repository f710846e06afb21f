"""What can go wrong in an engine, by who has to act."""


class Unavailable(RuntimeError):
    """This machine cannot do it. Whoever set up the machine acts; the message has the install line."""


class EngineError(RuntimeError):
    """The runtime failed on this model or this engine; its own error is ``__cause__`` or in the message."""


class OutOfMemory(EngineError):
    """Memory ran out while the runtime worked on this model: with less to work with it may go through."""


class NotTrusted(Exception):
    """A file is not signed by a key that is trusted, was changed since, or a key or signature cannot be read."""


class RuntimeCrashed(OutOfMemory):
    """The process that the runtime works in was ended by a signal by which also a lack of memory ends one."""
