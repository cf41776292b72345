"""``edgeyolo build``."""

from __future__ import annotations

import json
from pathlib import Path

import click

EPILOG = """\b
Examples:
  edgeyolo build out/yf-trt                    on the Jetson or PC with the GPU
  edgeyolo build out/yf-trt --sm SM86          ahead of time with TensorRT-RTX; no GPU needed
  edgeyolo build out/yf-trt --mark 'layers.1*' layers become outputs, which verify then compares

An engine is code for one GPU and one TensorRT version. It goes into BUNDLE/engines, beside a note of what it was built
from; the bundle itself does not change. Without Python bindings run BUNDLE/build.sh: it needs trtexec only.
"""


@click.command(epilog=EPILOG)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--sm", multiple=True, metavar="SMxx", help="TensorRT-RTX: build for these architectures. Repeatable.")
@click.option("--mark", multiple=True, metavar="PATTERN", help="Layers whose values become outputs too. Repeatable.")
@click.option("--force", is_flag=True, help="Replace an engine of the same name.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")
def build(bundle: Path, sm: tuple[str, ...], mark: tuple[str, ...], force: bool, as_json: bool) -> None:
    """Build the engine of BUNDLE, which was exported for tensorrt."""
    from edgeyolo.engine_build import build_bundle
    from edgeyolo.progress import Log

    built = build_bundle(bundle, Log(quiet=as_json), targets=sm, mark=mark, force=force)
    if as_json:
        click.echo(json.dumps({"engine": str(built.path), "bytes": built.nbytes, **built.note}, indent=1))
        return
    click.echo(f"{built.path}: {built.nbytes:,} bytes")
    click.echo(f"next: edgeyolo verify {bundle} --engine {built.path}" if not sm else "next: take it to its GPU")
