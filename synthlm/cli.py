"""The command line: it knows all parts and does nothing itself. Heavy imports wait until they are needed."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synthlm import shell

if TYPE_CHECKING:
    from synthlm.store import Store

app = typer.Typer(
    name="synthlm",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""
What an optimizer does to what a model knows: small transformers on synthetic languages.

\b
Start here:
  synthlm run-grid smoke --dry-run     what the smallest study would train, in how much time
  synthlm run-grid smoke               run it: tables, figures and verdicts in results/smoke
  synthlm demo                         a lesson: two optimizers side by side, in under a minute
  synthlm tasks                        the languages; 'synthlm tasks facts' shows sequences
  synthlm train --language facts       one model
  synthlm runs                         what has been trained

Everything trained is kept in a store (the folder 'store') and is never trained twice.
""",
)

StoreOption = Annotated[Path, typer.Option("--store", help="Folder that keeps finished jobs.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Any other setting; may be repeated.")
]
JobOption = Annotated[
    Path | None, typer.Option("--job", help="Read the job from JSON (also a failure's record) instead.")
]


@app.command("run-grid")
def run_grid(
    grid: Annotated[
        str, typer.Argument(metavar="PRESET_OR_FILE", help="smoke, laptop, paper, or a TOML file.")
    ],
    out: Annotated[Path | None, typer.Option(help="Results folder.", show_default="results/NAME")] = None,
    store: StoreOption = Path("store"),
    figures: Annotated[
        str | None,
        typer.Option(help="Names, with commas between: only these, and only the studies they need."),
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Number of seeds, instead of the grid's.")] = None,
    device: DeviceOption = "auto",
    workers: Annotated[
        int | None,
        typer.Option(
            help="Batches at once.", show_default="usable cores, 1 on a GPU; slurm: 64, 4; ray: all there are"
        ),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="local (worker processes), inline (this process), slurm or ray (more than one machine; "
            "--device cuda must be asked for)."
        ),
    ] = "local",
    engine_set: Annotated[
        list[str] | None,
        typer.Option(
            "--engine-set",
            metavar="NAME=VALUE",
            help="May be repeated. slurm: partition, account, qos, constraint, time (minutes), memory (GB), cpus, "
            "gpus, setup, sbatch.FLAG, cluster=local (no Slurm, to try it out); ray: address.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count jobs, time and disk; train nothing.")
    ] = False,
) -> None:
    """Run a whole study: train what is missing, then write tables, figures, verdicts and a report.

    \b
    synthlm run-grid laptop --dry-run
    synthlm run-grid laptop --seeds 5 --out results/five-seeds
    synthlm run-grid my-study.toml --workers 1
    synthlm run-grid paper --engine slurm --device cuda --engine-set partition=gpu --engine-set time=120

    It can be killed at any time; the same command goes on where it was. Exit code 0: all done; 1: some jobs
    failed (the rest is done); 2: something in the command or the grid is wrong.
    """
    from synthlm import driver, experiments, options
    from synthlm import figures as drawings
    from synthlm.engines import make_engine, resolve_device
    from synthlm.store import Store, check_writable

    where = resolve_device(device, engine)
    chosen = None if figures is None else [name.strip() for name in figures.split(",") if name.strip()]
    settings = experiments.load_grid(grid, seeds, chosen)
    only = (
        drawings.studies(settings.figures) if settings.figures else None
    )  # an unknown figure is refused here
    study, kept = experiments.Suite(settings, only), Store(store)
    of_engine = options.assignments(engine_set or [], "engine-set")
    pool = make_engine(engine, kept, where, workers, settings=of_engine)
    if dry_run:
        from synthlm.estimate import estimate

        pool.close()
        typer.echo(estimate(study, kept, where, pool.workers).text())
        return
    from synthlm import report
    from synthlm.progress import duration

    out = out or Path("results") / Path(grid).stem
    check_writable(out, "out")
    with shell.showing(kept, pool) as display:
        summary, tables = driver.run_to_tables(study, kept, pool, display, where)
    shell.print_failures(summary)
    typer.echo(
        f"{summary.done} jobs done ({summary.cached} cached, {summary.trained} trained), "
        f"{summary.failed} failed"
        + (f", {summary.blocked} not run because they need one that failed" if summary.blocked else "")
        + f"; {duration(summary.seconds)}"
    )
    if summary.done:
        report.write_report(study, tables, out, list(settings.figures) or None)
        typer.echo(f"results in {out}; read {out / 'report.html'} first")
    if summary.failed or summary.blocked:
        raise typer.Exit(1)


@app.command()
def train(
    language: Annotated[str, typer.Option(help="What to learn; see 'synthlm tasks'.")] = "facts",
    optimizer: Annotated[str, typer.Option(help="adamw, muon, sgd, ...")] = "adamw",
    lr: Annotated[float | None, typer.Option(help="Learning rate of the hidden matrices.")] = None,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of language, initialization and order.")] = 0,
    settings: SetOption = None,
    job: JobOption = None,
    store: StoreOption = Path("store"),
    device: DeviceOption = "auto",
) -> None:
    """Train one model from scratch; print its key and the folder it lies in.

    \b
    synthlm train --language facts --optimizer muon --lr 0.02 --steps 2000
    synthlm train --language modular --set model.width=32 --set training.schedule.shape=cosine
    synthlm train --job store/failed/KEY.json
    """
    from synthlm import options
    from synthlm.engines import resolve_device
    from synthlm.store import Store

    where = resolve_device(device)
    if job is None:
        wanted: Any = options.pretrain_job(language, optimizer, lr, steps, seed, settings or [])
    else:
        wanted = options.read_job(job, "pretrain")
    shell.run_one(wanted, [wanted], Store(store), where)


@app.command()
def finetune(
    base: Annotated[str | None, typer.Option(help="Key (or its beginning) of a pretrained model.")] = None,
    language: Annotated[
        str, typer.Option(help="What to learn now; drawn anew under the label new-NAME.")
    ] = "facts",
    optimizer: Annotated[str, typer.Option(help="adamw, muon, sgd, ...")] = "adamw",
    lr: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 300,
    seed: Annotated[int | None, typer.Option(help="The base's own by default.")] = None,
    rank: Annotated[int | None, typer.Option(help="Finetune through LoRA of this rank.")] = None,
    settings: SetOption = None,
    job: JobOption = None,
    store: StoreOption = Path("store"),
    device: DeviceOption = "auto",
) -> None:
    """Train a stored model further; print the new key and the folder it lies in.

    \b
    synthlm finetune --base 3fa9 --language facts --optimizer muon --lr 0.01
    synthlm finetune --base 3fa9 --language modular --rank 8
    """
    from synthlm import options
    from synthlm.config import InputError
    from synthlm.engines import resolve_device
    from synthlm.store import Store

    where = resolve_device(device)
    kept = Store(store)
    if job is not None:
        wanted: Any = options.read_job(job, "finetune")
    elif base is None:
        raise InputError("base: required, but not given; 'synthlm runs kind=pretrain' lists the bases")
    else:
        arguments = (base, language, optimizer, lr, steps, seed, rank, settings or [])
        wanted = options.finetune_job(kept, *arguments)
    shell.run_one(wanted, [wanted.base, wanted], kept, where)


@app.command()
def edge(
    folder: Annotated[
        Path,
        typer.Argument(
            help="Checkpoints (safetensors or PyTorch files) with their step in the file's or the folder's name."
        ),
    ],
    window: Annotated[int, typer.Option(help="Updates in the rolling window.")] = 10,
    sets: Annotated[
        str,
        typer.Option(
            help="Parameter sets, with commas between: all, attention, mlp, embedding, layers, or patterns."
        ),
    ] = "all,attention",
    every: Annotated[int, typer.Option(min=1, help="Take every so many checkpoints.")] = 1,
    sketch: Annotated[
        int | None, typer.Option(help="Keep so many numbers of an update, for models that do not fit.")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate, for the adiabatic parameter.")] = None,
    samples: Annotated[int, typer.Option(min=19, help="Samples of each null, for every window.")] = 99,
    out: Annotated[Path, typer.Option(help="Folder for edge.csv, edge.png and edge.pdf.")] = Path("edge"),
) -> None:
    """The spectral edge of a training run, from its saved checkpoints, whoever wrote them.

    \b
    synthlm edge runs/my-model/checkpoints
    synthlm edge checkpoints --sets "all,layers" --window 5 --out results/edge

    Checkpoints should lie equal numbers of steps apart; the steps found are printed, with a warning where they do
    not. The step is the number after step, iter, checkpoint, ckpt or epoch, else the one that varies. Every window is
    shown beside two nulls: updates of the same norms in random directions, and with the same correlation over time.
    """
    from synthlm import edge_folder

    words = tuple(word.strip() for word in sets.split(",") if word.strip())
    line, warning = edge_folder.steps_found(folder, every)
    typer.echo(line)
    if warning:
        typer.echo(warning, err=True)
    found = edge_folder.table(folder, window, words, every, sketch, lr, samples)
    typer.echo(edge_folder.summary(found))
    for path in edge_folder.write(found, out, str(folder)):
        typer.echo(path)


@app.command()
def analyze(
    target: Annotated[
        str | None,
        typer.Argument(metavar="KEY_OR_CHECKPOINT", help="A stored model's key, a folder or a weights file."),
    ] = None,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME...", help="Analyses; without: list them.")
    ] = None,
    others: Annotated[
        list[str] | None,
        typer.Option(
            "--with", metavar="KEY_OR_CHECKPOINT", help="A model finetuned from it; may be repeated."
        ),
    ] = None,
    step: Annotated[int | None, typer.Option(help="A kept step of a stored model, not its end.")] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FILE_OR_LANGUAGE",
            help="What to score a checkpoint on: .npy tokens, a text or a language.",
        ),
    ] = None,
    new_data: Annotated[
        str | None, typer.Option("--new-data", metavar="FILE_OR_LANGUAGE", help="What --with models learnt.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="NAME=VALUE", help="Of a weights file: heads, activation."),
    ] = None,
    aux: Annotated[
        list[str] | None,
        typer.Option("--aux", metavar="PATTERN", help="Checkpoint parameters that are no hidden matrices."),
    ] = None,
    length: Annotated[int, typer.Option(help="Tokens of a sequence cut from a text.")] = 64,
    pad: Annotated[
        int | None, typer.Option(help="Padding token of a .npy; the model's own by default.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of random draws.", show_default="the model's, or 0")
    ] = None,
    settings: SetOption = None,
    out: Annotated[Path | None, typer.Option(help="A .csv file, or a folder for several analyses.")] = None,
    limit: Annotated[int, typer.Option(help="Most rows shown.")] = 40,
    job: JobOption = None,
    store: StoreOption = Path("store"),
    device: DeviceOption = "auto",
) -> None:
    """Run analyses on a stored model, or on a checkpoint of your own.

    \b
    synthlm analyze 3fa9 curvature activations --out results/3fa9
    synthlm analyze 3fa9 landscape --with 81c0 --set items=64
    synthlm analyze ./my-gpt2 curvature --data my-text.txt --set which=all
    synthlm analyze base.safetensors slices --model heads=4 --model activation=relu2 --data facts

    Of a stored model the result is kept in the store and never computed twice. A folder is what save_pretrained of
    Hugging Face wrote; nothing is downloaded.
    """
    from synthlm import analyze as analyses
    from synthlm.engines import resolve_device

    if target is None and job is None:
        typer.echo(analyses.listing())
        return
    where = resolve_device(device)
    asked = analyses.Request(
        target, names or [], others or [], step, seed, settings or [], job, out,
        data, new_data, model or [], aux or [], length, pad,
    )  # fmt: skip

    def run(probe: Any, kept: "Store") -> None:
        shell.run_one(probe, [*probe.subjects, probe], kept, where)

    for name, columns in analyses.results(asked, store, where, run, lambda text: typer.echo(text, err=True)):
        shell.console().print(analyses.render(name, columns, limit))
        if out is not None:
            typer.echo(analyses.write(out, name, columns))


@app.command()
def runs(
    query: Annotated[
        list[str] | None, typer.Argument(help="Terms that must all fit; none: every job.")
    ] = None,
    store: StoreOption = Path("store"),
    limit: Annotated[int, typer.Option(help="Most rows.")] = 50,
) -> None:
    """List what the store holds.

    \b
    synthlm runs kind=finetune optimizer.name=muon
    synthlm runs status=failed
    synthlm runs facts seed=0
    """
    from synthlm import listing
    from synthlm.store import Store

    shell.console().print(listing.runs(Store(store, must_exist=True), " ".join(query or []), limit))


@app.command()
def show(
    key: Annotated[str, typer.Argument(help="A job's key or its beginning.")],
    store: StoreOption = Path("store"),
) -> None:
    """Show one job: config, manifest, files and curves, or the error it failed with."""
    from synthlm import listing
    from synthlm.store import Store

    shell.console().print(listing.show(Store(store, must_exist=True), key))


@app.command()
def tasks(
    name: Annotated[str | None, typer.Argument(help="A language; none: list them.")] = None,
    seed: Annotated[int, typer.Option(help="Seed it is drawn from.")] = 0,
    samples: Annotated[int, typer.Option(min=0, help="Sequences shown of each slice.")] = 4,
    settings: SetOption = None,
) -> None:
    """List the languages, or show one: sample sequences with their slices, sizes, exact bits and loss floor.

    \b
    synthlm tasks
    synthlm tasks facts --set items=100 --seed 3
    """
    from synthlm import options
    from synthlm.config import choose, parse
    from synthlm.tasks import LANGUAGES, build, describe, render

    if name is None:
        width = max(map(len, LANGUAGES))
        for word, kind in LANGUAGES.items():
            summary = " ".join((kind.__doc__ or "").strip().split("\n\n")[0].replace("``", "").split())
            typer.echo(f"{word:<{width}}  {summary}")
        return
    choose("language", name, list(LANGUAGES))
    config = parse(LANGUAGES[name], options.assignments(settings or []), name)
    shell.console().print(render(describe(build(config, seed), samples)))


@app.command()
def figures(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A results folder of run-grid.")],
) -> None:
    """Redraw the figures of a results folder from its tables; trains nothing."""
    from synthlm import report
    from synthlm.config import InputError

    if not folder.is_dir():
        raise InputError(f"folder: {folder} does not exist; 'synthlm run-grid' writes one")
    for path in report.redraw(folder):
        typer.echo(path)


@app.command()
def demo(
    language: Annotated[str, typer.Option(help="What is learnt; see 'synthlm tasks'.")] = "exceptions",
    optimizers: Annotated[str, typer.Option(help="One to four, with commas between.")] = "adamw,muon",
    lrs: Annotated[
        str | None,
        typer.Option(help="A learning rate each, with commas between.", show_default="sensible ones"),
    ] = None,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the lesson: same seed, same lesson.")] = 0,
    width: Annotated[int, typer.Option(help="The model's width.")] = 64,
    layers: Annotated[int, typer.Option(help="The model's layers.")] = 2,
    settings: SetOption = None,
    out: Annotated[Path, typer.Option(help="Folder for the figure of the end state.")] = Path("results/demo"),
    plain: Annotated[bool, typer.Option("--plain", help="Lines only, also on a terminal.")] = False,
    device: DeviceOption = "cpu",
) -> None:
    """The lesson: two optimizers learn regular and irregular verbs side by side, told as it happens.

    \b
    synthlm demo
    synthlm demo --optimizers adamw,muon,sgd --lrs 0.003,0.02,0.1 --seed 1
    synthlm demo --set language.exceptions=240 --width 32
    synthlm demo --language facts --set language.items=200
    """
    from synthlm.demo import run
    from synthlm.engines import resolve_device

    where = resolve_device(device)
    sizes = [f"model.width={width}", f"model.layers={layers}"]
    made = run.plan(language, optimizers, lrs, steps, seed, [*sizes, *(settings or [])], where)
    console = shell.console()
    run.teach(made, out, console, animated=console.is_terminal and not plain)


def main() -> None:
    """Entry point: bad input becomes one message and exit code 2."""
    try:
        app()
    except Exception as error:
        from synthlm.config import InputError

        if not isinstance(error, InputError):
            raise
        print(f"synthlm: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
