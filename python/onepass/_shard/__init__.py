"""A step that many processes share: each has the state of a part of the parameters."""

from onepass._shard.sharded import Sharded, shard

__all__ = ["Sharded", "shard"]
