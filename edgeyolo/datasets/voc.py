"""Pascal VOC xml, which DIOR uses too: ``Annotations/**/a.xml`` beside ``JPEGImages*/a.jpg``.

Pixels are counted from 1 and ``xmax``, ``ymax`` belong to the box, so x0 = xmin - 1 and x1 = xmax. An object marked
``difficult`` is kept and told. XML with a DOCTYPE is refused: entities can grow without limit or name other files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from xml.etree import ElementTree

from edgeyolo.datasets.check import Label, Labelled
from edgeyolo.datasets.files import MAX_LABEL_BYTES, read_bytes, short
from edgeyolo.datasets.sample import Problem
from edgeyolo.errors import InputError


class _NoDoctype(ElementTree.TreeBuilder):
    """Builds the tree and refuses a document type, before any entity in it is declared."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("a DOCTYPE")


def read_voc(
    labels: Iterable[Path], pictures: dict[str, Path], root: Path, problems: list[Problem]
) -> Iterator[Labelled]:
    """Read the files ``labels``; ``pictures`` are found by the file's name without its ending."""
    for path in labels:
        picture = pictures.get(path.stem, root / f"{path.stem}.jpg")
        try:
            tree = _parse(path)
        except InputError as error:
            problems.append(Problem(str(path), "unreadable labels", "left out", short(error.got or error.what)))
            continue
        size = tuple(
            int(v) if 0 < v < 1 << 26 else 0 for v in (_number(tree, f"size/{k}") for k in ("width", "height"))
        )
        entries = [_label(f"{path}: object[{i}]", e, problems) for i, e in enumerate(tree.findall("object"))]
        kept = [entry for entry in entries if entry]
        yield Labelled(path.stem, picture, kept, size=(size[0], size[1]) if all(size) else None)


def _parse(path: Path) -> ElementTree.Element:
    """The tree of a file. Raises InputError if it is no plain XML."""
    data = read_bytes(path, MAX_LABEL_BYTES)
    try:
        parser = ElementTree.XMLParser(target=_NoDoctype())
        parser.feed(data)
        tree = parser.close()
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise InputError("this is not plain XML", where=path, got=str(error)) from error
    if not isinstance(tree, ElementTree.Element) or tree.tag != "annotation":
        raise InputError("this is not a VOC file", where=path, got="the root is not <annotation>")
    return tree


def _label(where: str, entry: ElementTree.Element, problems: list[Problem]) -> Label | None:
    """Read one object."""
    name = (entry.findtext("name") or "").strip()
    if not name or entry.find("bndbox") is None:
        problems.append(Problem(where, "unreadable entry", "dropped", short(name)))
        return None
    if (entry.findtext("difficult") or "").strip() == "1":
        problems.append(Problem(where, "difficult", "kept", short(name)))
    x0, y0, x1, y1 = (_number(entry, f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax"))
    return Label(where, name, (x0 - 1, y0 - 1, x1, y1))


def _number(element: ElementTree.Element, path: str) -> float:
    """The number at ``path``, or NaN."""
    try:
        return float(element.findtext(path) or "nan")
    except ValueError:
        return float("nan")
