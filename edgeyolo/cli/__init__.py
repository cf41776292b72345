"""The command line: one thin module per command, loaded when it is called."""

from __future__ import annotations

import importlib
from typing import Any

import click

from edgeyolo import __version__
from edgeyolo.errors import EdgeYoloError, printable

COMMANDS = {
    "export": "turn a model into what a target needs",
    "verify": "prove that a bundle computes what it should, everywhere",
    "detect": "run a model or bundle on pictures",
    "eval": "score a model on a labelled data set",
    "benchmark": "measure latency, NMS time and FPS of models and bundles, interleaved",
    "compare": "compare two results files of benchmark; a gate for slowdowns",
    "finetune": "polish what export makes: the float model teaches the integers",
    "build": "build the TensorRT engine of a bundle",
    "inspect": "print what TensorRT made of every layer of an engine",
    "lint": "explain what TensorRT refuses or runs slowly in anybody's quantised ONNX",
    "diagnose": "name the layers that lose the accuracy, and what gives it back",
    "serve": "serve a page on which a phone measures and checks a model, with no app",
    "train": "train a Darknet-family detector",
    "info": "print a model's layers, parameters and sizes",
}
"""Every command and its line in the help; ``edgeyolo.cli.<name>`` has a click command of the same name."""


TRAINING = ("lightning_fabric", "safetensors", "tensorboardX")
"""Packages of the extra of that name; the others that may be missing are export's."""


class _Commands(click.Group):
    """Loads a command's module only when it is used, and turns our errors into a message and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(f"edgeyolo.cli.{cmd_name}"), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except EdgeYoloError as error:
            click.echo(f"error: {printable(str(error))}", err=True)
            ctx.exit(error.exit_code)
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("edgeyolo"):
                raise
            click.echo(f"error: this command needs the package {error.name}", err=True)
            extra = "train" if error.name in TRAINING else "export"
            click.echo(f"  next: pip install 'edgeyolo[{extra}]'", err=True)
            ctx.exit(2)


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="edgeyolo")
def main() -> None:
    r"""Turn a trained YOLO into what an edge device needs, and prove that it is still the same model.

    \b
    edgeyolo export yolo.cfg --weights yolo.weights --calib pictures/ --target fpga --bits 4 -o out/fpga
    edgeyolo verify out/fpga
    edgeyolo detect out/fpga pictures/dog.jpg
    """
