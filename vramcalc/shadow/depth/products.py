"""Products of a walk of a few decoder layers, read as those of any number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from vramcalc.shadow.depth.few_layers import NotRepeatable
from vramcalc.shadow.engine.work import Product


def at_full_depth(products: Sequence[Product], walked: int, n_layers: int) -> Iterator[tuple[Product, int]]:
    """Each product of a walk, and how many of it there are at full depth.

    Layers after the first walked ones are alike; the last of the walked ones stands for the rest.

    Args:
        products: of the walk.
        walked: decoder layers that it went through.
        n_layers: decoder layers of the model.

    Raises:
        NotRepeatable: the last two walked layers do not compute the same.
    """
    last = walked - 1
    if walked < n_layers and _of_layer(products, last) != _of_layer(products, last - 1):
        raise NotRepeatable(f"layer {last} computes something else than layer {last - 1}")
    for p in products:
        yield p, copies(p.layer, walked, n_layers)


def copies(layer: int | None, walked: int, n_layers: int) -> int:
    """Layers at full depth that a walked one stands for: the last for all that were not walked."""
    return 1 + n_layers - walked if layer == walked - 1 else 1


def _of_layer(products: Iterable[Product], layer: int) -> list[Product]:
    """What a layer computes, as layer 0 would be said to."""
    name, zero = f".layers.{layer}.", ".layers.0."
    return sorted(
        (p._replace(layer=0, owner=p.owner.replace(name, zero)) for p in products if p.layer == layer),
        key=lambda p: (p.owner, p.made_in, p.phase),
    )
