"""One adapter per family: how its codec splits into transforms, and which calls it answers."""

from sparsecodec.runtime.adapters.evc import EVCCodec

ADAPTERS = (EVCCodec,)

__all__ = ["ADAPTERS", "EVCCodec"]
