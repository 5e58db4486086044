"""The towers of the book, one file a chapter.

A user tower maps the inputs of `recsys_helpers.samples` to `[batch, T, d]`, one vector for each of
a row's last T moments; an item tower maps item ids `[n]` to `[n, d]`. The score of a pair is always
the dot product of the two, so everything downstream sees only arrays. Weights are made in the
constructor or by the first call; a tower of yours is a registered layer with nothing but a
constructor and `call`, and may return vectors for more moments than asked for: the last count.
"""

from recsys_helpers.towers.dssm import DSSMItemTower, DSSMUserTower
from recsys_helpers.towers.fm import FMItemTower, FMUserTower
from recsys_helpers.towers.self_attention import SelfAttentiveUserTower
from recsys_helpers.towers.several import SumItemTower, SumUserTower
from recsys_helpers.towers.youtubednn import ItemEmbeddingTower, YouTubeDNNUserTower

__all__ = [
    "DSSMItemTower",
    "DSSMUserTower",
    "FMItemTower",
    "FMUserTower",
    "ItemEmbeddingTower",
    "SelfAttentiveUserTower",
    "SumItemTower",
    "SumUserTower",
    "YouTubeDNNUserTower",
]
