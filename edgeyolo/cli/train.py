"""``edgeyolo train``: train a Darknet-family detector."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from edgeyolo.detector import Detector
    from edgeyolo.frontend.darknet.network import Network
    from edgeyolo.progress import Log
    from edgeyolo.train.checkpoint import Checkpoint
    from edgeyolo.train.trainer import Job, Validate

EPILOG = """\b
Examples:
  edgeyolo train --data coco.data:train --val coco.data:val --model yolov3-tiny.cfg --weights darknet19.weights
  edgeyolo train --data voc/:train --val voc/:val --model yolo.cfg --epochs 200 --device cuda --devices 4
  edgeyolo train --resume out/yolo-train

The folder gets best.weights and last.weights (Darknet reads them), the same as .safetensors, metrics.csv, TensorBoard's
events and a checkpoint. A training that was stopped, wherever, goes on with --resume and gives the same curve on a CPU;
on a GPU sums differ in their last digits from run to run. Of the cfg only the network counts: the learning rate, jitter
and loss keys of [net] and [yolo] are replaced by options.
Exit codes: 0 done, 2 bad input or a loss that is no number, 130 interrupted.
"""
HARDWARE = ("resume", "device", "devices", "nodes", "precision", "workers")
"""What may change when a training is resumed."""
VAL_CONF = 0.01
"""Score threshold of the scores while training: below it a young network finds something everywhere."""
MAX_VAL_SCENES = 4096
"""So many generated scenes stay in memory, 77 kB each."""
CFG, NAMES = "model.cfg", "model.names"


def _recipe_options(command: Any) -> Any:
    """One option for every field of the recipe."""
    from edgeyolo.train.recipe import Recipe

    for entry in reversed(fields(Recipe)):
        name, text = f"--{entry.name.replace('_', '-')}", entry.metadata["help"]
        command = click.option(name, type=type(entry.default), default=entry.default, show_default=True, help=text)(
            command
        )
    return command


def _options(command: Any) -> Any:
    path = click.Path(path_type=Path)
    for option in reversed([
        click.option("--data", metavar="SOURCE", help="Labelled pictures: a folder, a file or scenes:train."),
        click.option("--val", metavar="SOURCE", help="Other labelled pictures, to score every epoch."),
        click.option("--model", type=path, help="Darknet .cfg with [yolo] heads [default: the embedded one]."),
        click.option("--weights", type=path, help="Begin with these; the file may end early (a backbone)."),
        click.option("--names", type=path, help="Class names, one a line [default: the data set's]."),
        click.option("-o", "--output", type=path, help="Folder to make [default: out/MODEL-train]."),
        click.option("--resume", type=path, metavar="FOLDER", help="Go on with a training, as it was begun."),
        click.option(
            "--val-every", default=1, show_default=True, type=click.IntRange(1), help="Epochs from score to score."
        ),
        click.option(
            "--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda", "mps"]),
            help="Where to train.",
        ),
        click.option("--devices", default=1, show_default=True, type=click.IntRange(1), help="Devices a machine."),
        click.option(
            "--nodes", default=1, show_default=True, type=click.IntRange(1),
            help="Machines; start the command on each, with MASTER_ADDR, MASTER_PORT and NODE_RANK set.",
        ),
        click.option(
            "--precision", default="auto", show_default=True, type=click.Choice(["auto", "32-true", "bf16-mixed"]),
            help="auto: bfloat16 where the GPU has it.",
        ),
        click.option(
            "--workers", default=1, show_default=True, type=click.IntRange(0), help="Processes that prepare batches."
        ),
    ]):  # fmt: skip
        command = option(command)
    return command


@click.command(epilog=EPILOG)
@_options
@_recipe_options
def train(**options: Any) -> None:
    """Train a Darknet-family detector on labelled pictures."""
    from edgeyolo.progress import Log
    from edgeyolo.train.trainer import CHECKPOINT, Hardware, Trainer

    hardware = Hardware(**{key: options[key] for key in HARDWARE[1:]})
    _check_options(options)
    fabric = hardware.fabric()
    log = Log(quiet=not fabric.is_global_zero)
    folder, checkpoint = _begin(fabric, options)
    job = _job(
        folder, checkpoint.facts if checkpoint else _facts(options), options, log, resumed=checkpoint is not None
    )
    try:
        trainer = Trainer(job, fabric, hardware.workers, log, checkpoint)
        if checkpoint is None and fabric.is_global_zero:
            _make_folder(job, options)
        trainer.run()
    except KeyboardInterrupt:
        if (folder / CHECKPOINT).exists():
            log.say(f"interrupted; go on with: edgeyolo train --resume {folder}")
        raise click.exceptions.Exit(130) from None
    stem = "best" if (folder / "best.weights").exists() else "last"
    log.say(f"done; next: edgeyolo export {folder / CFG} --weights {folder / stem}.weights --target fpga")


def _check_options(options: dict[str, Any]) -> None:
    """Refuse options that contradict one another."""
    from edgeyolo.errors import InputError

    context = click.get_current_context()
    given = {name for name in options if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    idle = [p.opts[0] for p in context.command.params if p.name in given - set(HARDWARE)]
    if options["resume"] and idle:
        raise InputError("a resumed training goes on as it was begun", got=", ".join(idle), hint="leave them out")
    if not options["resume"] and options["data"] is None and options["model"] is not None:
        raise InputError("no pictures to train on", hint="add --data SOURCE, and --val SOURCE to score")


def _facts(options: dict[str, Any]) -> dict[str, Any]:
    """What a new training's checkpoints say about how it was begun."""
    from edgeyolo.assets import DATA
    from edgeyolo.train.recipe import Recipe

    default = options["model"] is None and options["data"] is None
    sources = {key: options[key] for key in ("data", "val")}
    if default:
        sources = {"data": "scenes:train", "val": options["val"] or DATA}
    for key, source in sources.items():
        if source is not None and (source.partition(":")[0] != "scenes" or Path(source).exists()):
            sources[key] = str(Path(source).absolute())  # a training may be resumed from elsewhere
    recipe = Recipe(**{entry.name: options[entry.name] for entry in fields(Recipe)})
    return {**sources, "val_every": options["val_every"], "recipe": recipe.to_json()}


def _begin(fabric: Any, options: dict[str, Any]) -> tuple[Path, Checkpoint | None]:
    """The folder, and the checkpoint to resume. The first process looks; the others stop when it stops."""
    from edgeyolo.assets import CFG as DEFAULT
    from edgeyolo.errors import EdgeYoloError
    from edgeyolo.train.checkpoint import load
    from edgeyolo.train.trainer import CHECKPOINT

    folder = options["resume"] or options["output"] or Path("out") / f"{(options['model'] or DEFAULT).stem}-train"
    error: EdgeYoloError | None = None
    if fabric.is_global_zero and not options["resume"]:
        try:
            _check_folder(folder)
        except EdgeYoloError as refused:
            error = refused
    if fabric.broadcast(error is not None):
        raise error or click.exceptions.Exit(2)
    return folder, load(folder / CHECKPOINT) if options["resume"] else None


def _check_folder(folder: Path) -> None:
    """Refuse a folder that holds something."""
    from edgeyolo.errors import InputError
    from edgeyolo.output import check_free
    from edgeyolo.train.trainer import CHECKPOINT

    if (folder / CHECKPOINT).exists():
        hint = f"go on with it: edgeyolo train --resume {folder}; or choose another folder with -o"
        raise InputError("there is a training in this folder", where=folder, hint=hint)
    left_over = folder.is_dir() and {path.name for path in folder.iterdir()} <= {CFG, NAMES}
    if not left_over:  # of a training that ended before its first checkpoint
        check_free(folder, force=True)


def _make_folder(job: Job, options: dict[str, Any]) -> None:
    """Everything that a resumed training needs, besides the checkpoint."""
    from edgeyolo.assets import CFG as DEFAULT
    from edgeyolo.errors import InputError
    from edgeyolo.output import write_file

    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        write_file(job.folder / CFG, (options["model"] or DEFAULT).read_bytes(), force=True)
        write_file(job.folder / NAMES, "".join(f"{n}\n" for n in job.detector.names).encode(), force=True)
    except OSError as error:
        raise InputError("cannot write the output", where=job.folder, got=error.strerror) from error


def _job(folder: Path, facts: dict[str, Any], options: dict[str, Any], log: Log, *, resumed: bool) -> Job:
    """Load network and pictures. ``facts``: of ``_facts`` or of a checkpoint, which is a file from anywhere."""
    from edgeyolo.assets import CFG as DEFAULT
    from edgeyolo.datasets import load_dataset
    from edgeyolo.errors import InputError
    from edgeyolo.evaluate import match_classes
    from edgeyolo.frontend.darknet import load_darknet
    from edgeyolo.train.loss import check_trainable
    from edgeyolo.train.pictures import Pictures
    from edgeyolo.train.recipe import Recipe
    from edgeyolo.train.trainer import Job, set_prior

    data, val, every = (facts.get(key) for key in ("data", "val", "val_every"))
    if not (isinstance(data, str) and (val is None or isinstance(val, str)) and isinstance(every, int) and every > 0):
        raise InputError("the checkpoint does not say how the training was begun", where=folder, got=str(facts)[:80])
    recipe = Recipe.from_json(facts.get("recipe"))
    loaded = load_darknet(
        folder / CFG if resumed else options["model"] or DEFAULT, options["weights"],
        names=folder / NAMES if resumed else options["names"],
    )  # fmt: skip
    check_trainable(loaded.detector.heads)
    set_prior(loaded.module, loaded.detector)
    dataset = load_dataset(data)
    detector = loaded.detector
    if not detector.names and len(dataset.names) == detector.classes:
        detector = replace(detector, names=tuple(dataset.names))
    index = match_classes(detector, dataset.names)
    validate = _validator(val, detector, log) if val else None
    with log.stage("pictures") as details:
        problems = list(dataset.problems)
        pictures = Pictures.load(dataset.samples, index, detector.preprocess, log, problems)
        details.append(f"{len(pictures)} of {data}, {sum(len(s.boxes) for s in pictures.samples)} objects")
        if problems:
            details.append(f"label problems: {replace(dataset, problems=tuple(problems)).summary()}")
    if resumed and facts.get("pictures") != len(pictures):
        raise InputError("the pictures are not those that the training began with", where=data, got=len(pictures),
                         allowed=facts.get("pictures"), hint="restore them, or begin anew")  # fmt: skip
    if validate is None:
        log.warn("nothing is scored without --val: there will be no best.weights")
    facts = {"data": data, "val": val, "val_every": every, "pictures": len(pictures)}
    return Job(loaded.module, detector, pictures, recipe, folder, facts, validate, every)


def _validator(source: str, detector: Detector, log: Log) -> Validate:
    """A function that scores a network on ``source``. Raises InputError if nothing can be scored on it."""
    from edgeyolo.datasets import load_dataset
    from edgeyolo.errors import InputError
    from edgeyolo.evaluate import Setting, evaluate, match_classes
    from edgeyolo.runners.darknet import DarknetRunner

    dataset = load_dataset(source)
    if len(dataset.samples) <= MAX_VAL_SCENES:
        dataset = replace(dataset, samples=list(dataset.samples))  # generated scenes are made once
    match_classes(detector, dataset.names)
    if not any(len(sample.boxes) for sample in dataset.samples):
        raise InputError("there is nothing to score: no picture shows a labelled object", where=source,
                         hint="leave --val out, or give pictures with labels")  # fmt: skip
    if dataset.problems:
        log.warn(f"label problems in {source}: {dataset.summary()}")

    def validate(network: Network) -> dict[str, float | None]:
        runner = DarknetRunner.of(network, detector)
        return evaluate(runner, detector, dataset, Setting(conf=VAL_CONF), log).values

    return validate
