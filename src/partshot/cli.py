"""The command `partshot`: one thin command per verb.

Each command imports its task only when it is called, so that help is fast and predicting needs no torch. A command has
one parameter per option, because typer builds the command line from the signature.
"""

from pathlib import Path
from typing import Annotated

import typer

import partshot
from partshot.cli_options import (
    AcceptLicense,
    Cache,
    Download,
    Generator,
    Images,
    Kimg,
    Labels,
    Out,
    RgbMasks,
    Seed,
    Size,
    Student,
)
from partshot.plain_warnings import show_only_own_warnings
from partshot.terminal import Commands, asker, fetch_weights, numbers, show, task_of

_LISTED = 10  # skipped images, on the terminal; predictions.json has them all


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def main() -> None:
    """Runs the command line."""
    show_only_own_warnings()
    app()


def _print_version(asked: bool) -> bool:
    if asked:
        typer.echo(f"partshot {partshot.__version__}")
        raise typer.Exit
    return asked


@app.callback(epilog="Start with:  partshot demo --out demo/")
def _global(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """From a folder of images and 1-10 labeled ones to a fast network that segments the parts."""


@app.command(epilog="Example:  partshot doctor")
def doctor() -> None:
    """Check the installation.

    Prints versions and devices, imports every library, and gives the command that repairs what does not work.
    """
    checkup = task_of("doctor")()
    typer.echo("\n".join(checkup.lines))
    for problem in checkup.problems:
        typer.echo(f"problem: {problem}")
    typer.echo("no problem found" if checkup.healthy else "solve the first problem first, then run doctor again")
    raise typer.Exit(0 if checkup.healthy else 1)


@app.command(epilog="Example:  partshot demo --out demo/")
def demo(
    out: Out,
    kind: Annotated[str, typer.Option(help="What the images show: faces, faces-lr, cars or horses.")] = "faces",
    size: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 64,
    seed: Seed = 0,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, metavar="INT", help="Trainings in parallel; default: two, where there are two cores."),
    ] = None,
) -> None:
    """Run the whole method on toy images.

    Makes the images, takes the labels of one and of ten, and ends with a report: first results within two minutes, all
    of it in about seven minutes on two cores, without internet access.
    """
    show(task_of("demo")(out=out, kind=kind, size=size, seed=seed, jobs=jobs))


@app.command(epilog="Example:  partshot toy faces --count 1000 --size 128 faces/")
def toy(
    kind: Annotated[str, typer.Argument(help="faces, faces-lr, cars or horses.")],
    folder: Annotated[Path, typer.Argument(help="Gets images/, masks/ and classes.json.")],
    count: Annotated[int, typer.Option(help="How many images.")] = 100,
    size: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 64,
    seed: Seed = 0,
) -> None:
    """Write toy images with exact masks."""
    show(task_of("toy")(kind=kind, count=count, size=size, folder=folder, seed=seed))


@app.command(epilog="Example:  partshot pretrain simsiam --images photos/ --out trained/")
def pretrain(
    out: Out,
    images: Annotated[
        Path | None, typer.Option("--images", "-i", help="Folder of images; toy-face-64 makes its own.")
    ] = None,
    pretext: Annotated[str, typer.Argument(help="moco, simsiam, stylegan1 or stylegan2.")] = "simsiam",
    preset: Annotated[
        str | None,
        typer.Option(
            help="small-folder (the default; with --start further); on a GPU small-folder-gpu and, of moco, "
            "small-folder-long; ganorcon, moco-v2-paper, simsiam-paper; of a generator stylegan1-paper, "
            "stylegan2-paper, further, toy-face-64, toy-face-64-further."
        ),
    ] = None,
    size: Size = None,
    kimg: Kimg = None,
    batch: Annotated[int | None, typer.Option(help="Images per step; default: the preset's.")] = None,
    seed: Seed = 0,
    devices: Annotated[int, typer.Option(help="How many GPUs, or processes, share the work.")] = 1,
    start: Annotated[
        Path | None, typer.Option(help="A trained generator to start from, for the stylegan pretexts.")
    ] = None,
) -> None:
    """Train a representation without labels."""
    given = {"preset": preset, "size": size, "kimg": kimg, "batch": batch, "seed": seed, "devices": devices}
    show(task_of("pretrain")(pretext, images, out, **given, start=start))


@app.command(epilog="Example:  partshot sample --generator trained/representation --count 10 --out samples/")
def sample(
    out: Out,
    generator: Generator = None,
    count: Annotated[int, typer.Option(help="How many images.")] = 10,
    seed: Seed = 0,
    psi: Annotated[float, typer.Option(help="Truncation: below 1, images are more alike and look better.")] = 1.0,
) -> None:
    """Generate images to label with a trained generator.

    Writes images/ and, beside them, latents/, from which `partshot fit` reads their features.
    """
    show(task_of("sample")(generator, out, count=count, seed=seed, psi=psi))


@app.command(epilog="Example:  partshot invert --images photos/ --generator trained/representation --out found/")
def invert(
    images: Images,
    out: Out,
    generator: Generator = None,
    preset: Annotated[str, typer.Option(help="fast, or stylegan2-paper: 1,000 steps in W.")] = "fast",
    steps: Annotated[
        int | None, typer.Option(min=1, metavar="INT", help="Optimization steps; default: the preset's.")
    ] = None,
    lpips: Annotated[
        Path | None, typer.Option(help="LPIPS' weights, a safetensors file; without: the discriminator's features.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Images at a time.")] = 16,
) -> None:
    """Project images into a generator's latent space (GAN inversion).

    Writes latents/, the reconstructions and their distances, and lists images that are poorly inverted.
    """
    show(task_of("invert")(generator, images, out, preset=preset, steps=steps, lpips=lpips, batch=batch))


@app.command(epilog="Example:  partshot fit --images photos/ --labels masks/ --out teacher/ --representation random")
def fit(
    images: Images,
    labels: Labels,
    out: Out,
    representation: Annotated[
        str | None,
        typer.Option(
            help="pixels, random, stylegan2[:LAYERS], a pretrained encoder (see `partshot encoders`), "
            "timm:NAME[@WEIGHTS], or the folder of a trained one; append +position. Default: a pretrained encoder that "
            "is on this machine, else random+position."
        ),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(
            help="linear, mlp-s, mlp-pair, mlp-1, mlp-2, mlp-ganorcon, cnn-s, cnn-m, cnn-l, conv or ensemble; "
            "default: mlp-pair on a pretrained encoder, else cnn-s."
        ),
    ] = None,
    preset: Annotated[
        str,
        typer.Option(help="fast, regan-paper, regan-code, ganorcon-mlp, ganorcon-conv; of an ensemble: datasetgan."),
    ] = "fast",
    size: Annotated[
        int | None,
        typer.Option(
            help="Side of the images in pixels; default: 128, or larger for mlp-pair on a pretrained encoder."
        ),
    ] = None,
    seed: Seed = 0,
    rgb_masks: RgbMasks = False,
    cache: Cache = True,
    download: Download = False,
    accept_license: AcceptLicense = None,
) -> None:
    """Fit a head to a few labeled images.

    The head classifies the features of a representation; together they are the few-shot teacher of a student.
    """
    fetch_weights([representation or ""], download, accept_license)
    task = task_of("fit")
    options = {"representation": representation, "head": head, "preset": preset, "size": size, "seed": seed}
    show(task(images=images, labels=labels, out=out, **options, rgb_masks=rgb_masks, cache=cache))


@app.command(epilog="Example:  partshot distill --images photos/ --labels masks/ --teacher teacher/ --out student/")
def distill(
    images: Images,
    labels: Labels,
    out: Out,
    teacher: Annotated[
        Path | None, typer.Option(help="What `partshot fit` wrote, or a larger student; default: none.")
    ] = None,
    student: Student = "auto",
    preset: Annotated[
        str | None,
        typer.Option(
            help="pretrained, default, compact, supervised, "
            "auto-shot, auto-shot-consistent, auto-shot-pretrained, auto-shot-many, "
            "many-objects, regan-autoshot, ganorcon; default: the one for the student."
        ),
    ] = None,
    size: Size = None,
    kimg: Kimg = None,
    generated: Annotated[
        int,
        typer.Option(min=1, metavar="INT", help="Labeled images that a teacher with a generator generates."),
    ] = 2000,
    older: Annotated[int | None, typer.Option("--drawn", hidden=True, help="--generated in partshot 0.1.")] = None,
    start: Annotated[
        Path | None, typer.Option(help="Initial weights: a student, a trained encoder of the same network, or a file.")
    ] = None,
    snapshots: Annotated[
        int,
        typer.Option(
            min=0, max=50, metavar="INT", help="How many snapshots to export during training, for evaluate --folds."
        ),
    ] = 0,
    seed: Seed = 0,
    rgb_masks: RgbMasks = False,
    download: Download = False,
    accept_license: AcceptLicense = None,
) -> None:
    """Train a fast student on all images."""
    fetch_weights([student], download, accept_license)
    task = task_of("distill")
    options = {"student": student, "preset": preset, "size": size, "kimg": kimg, "seed": seed, "start": start}
    options |= {"generated": older or generated, "snapshots": snapshots}
    show(task(images, labels, out, teacher=teacher, **options, rgb_masks=rgb_masks))


@app.command(epilog="Example:  partshot predict student.onnx photos/ --out masks/ --overlays")
def predict(
    model: Annotated[Path, typer.Argument(help="ONNX file that `partshot export` or `partshot run` wrote.")],
    images: Annotated[Path, typer.Argument(help="Folder of images, or one image.")],
    out: Out,
    overlays: Annotated[bool, typer.Option("--overlays", help="Also write images with the parts in color.")] = False,
    confidence: Annotated[
        bool, typer.Option("--confidence", help="Also write the probability of each pixel's label.")
    ] = False,
    batch: Annotated[int, typer.Option(help="Images of one size that are predicted together.")] = 8,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Predict images again that already have a mask.")
    ] = False,
    window: Annotated[
        str,
        typer.Option(
            help="Side of overlapping windows in pixels; off: every image whole; auto: only large images in windows."
        ),
    ] = "auto",
    scale: Annotated[
        str,
        typer.Option(help="Scale factor of the windows; of several, such as 0.5,1,2, the predictions are averaged."),
    ] = "1",
    max_megapixels: Annotated[float, typer.Option(help="Skip images that are larger.")] = 500,
    refine: Annotated[
        bool, typer.Option("--refine", help="Move labels to the edges of the image (guided filter).")
    ] = False,
) -> None:
    """Write a mask for every image; needs no torch.

    Each is an indexed PNG of the image's name and size. Resumes after a stop. An image more than twice as large as
    those that the model was trained on is predicted in overlapping windows of their size. --refine filters the labels
    with the image as guide, where the image is larger than the network's input.
    """
    summary = task_of("predict")(
        model,
        images,
        out,
        overlays=overlays,
        confidence=confidence,
        batch=batch,
        overwrite=overwrite,
        window=window,
        scale=scale,
        max_megapixels=max_megapixels,
        refined=refine,
    )
    for _, reason in summary.skipped[:_LISTED]:
        typer.echo(f"warning: skipped: {reason}", err=True)
    if len(summary.skipped) > _LISTED:
        typer.echo(f"warning: {len(summary.skipped) - _LISTED} more skipped, see predictions.json", err=True)
    show(summary)


@app.command(epilog="Example:  partshot evaluate student.onnx --images photos/ --masks masks/ --out report/")
def evaluate(
    model: Annotated[Path, typer.Argument(help="ONNX file, or a folder of predicted masks; with --folds, of models.")],
    images: Images,
    masks: Annotated[Path, typer.Option("--masks", "-m", help="Folder of true masks, NAME.png.")],
    out: Out,
    by_folds: Annotated[bool, typer.Option("--folds", help="Five-fold selection among a folder of models.")] = False,
    rgb_masks: RgbMasks = False,
) -> None:
    """Score a model against true masks.

    Writes results.json and report.html. The model is an ONNX file or a folder of predicted masks. With --folds it is a
    folder of models, such as a student's snapshots: the best on one fold is scored on the others. Writes folds.json.
    The test images of the folds overlap, so their standard deviation is not one over seeds. Leave out training images.
    """
    if by_folds:
        several, mean = task_of("folds")(model, images, masks, out, rgb_masks=rgb_masks)
        for number, fold in enumerate(several, start=1):
            chose = f"{fold.candidates[fold.chosen]:.3f} on {len(fold.validation)} images"
            typer.echo(f"{fold.score.miou:.3f}  fold {number}: mean IoU of {fold.chosen} ({chose}) on all others")
        deviations = f"+- {mean.miou_std:.3f} mean IoU, {mean.wiou:.3f} +- {mean.wiou_std:.3f} weighted"
        typer.echo(f"{mean.miou:.3f} {deviations}; see {out / 'folds.json'}")
        return
    found = task_of("evaluate")(model, images, masks, out, rgb_masks=rgb_masks)
    for name, iou in found.per_part.items():
        typer.echo(f"{iou:.3f}  {name}")
    typer.echo(f"{found.miou:.3f}  mean IoU, {found.wiou:.3f} weighted; see {out / 'report.html'}")


@app.command(epilog="Example:  partshot export student/ student.onnx")
def export(
    student: Annotated[Path, typer.Argument(help="What `partshot distill` or `partshot run` wrote.")],
    out: Annotated[Path, typer.Argument(help="ONNX file to write.")],
) -> None:
    """Write a student as one ONNX file.

    Resizing, normalization and argmax are in the model. Fails unless onnxruntime computes what torch does.
    """
    show(task_of("export")(student, out))


@app.command(epilog="Example:  partshot run --images photos/ --labels masks/ --out parts/")
def run(
    images: Images,
    labels: Labels,
    out: Out,
    representation: Annotated[
        str,
        typer.Option(
            help="Representation of an additional few-shot teacher: none, auto, random, pixels, moco, simsiam, "
            "stylegan1, stylegan2, a pretrained encoder (see `partshot encoders`), timm:NAME[@WEIGHTS]."
        ),
    ] = "none",
    size: Size = None,
    minutes: Annotated[
        float | None, typer.Option(help="About how long all of it may take (--compact comes on top).")
    ] = None,
    auto_minutes: Annotated[
        float,
        typer.Option(
            min=0, metavar="FLOAT", help="About how long auto may compare representations by cross-validation."
        ),
    ] = 2,
    student: Student = "auto",
    seed: Seed = 0,
    rgb_masks: RgbMasks = False,
    cache: Cache = True,
    download: Download = False,
    accept_license: AcceptLicense = None,
    compact: Annotated[
        bool, typer.Option("--compact", help="Also train a faster student on the student's labels: compact.onnx.")
    ] = False,
    preview: Annotated[
        bool, typer.Option("--preview/--no-preview", help="Write first masks before the student is trained.")
    ] = True,
    check_masks: Annotated[
        Path | None,
        typer.Option(
            help="Folder of masks of further images of --images, never trained on: the student is scored on them "
            "instead of estimated by cross-validation. Their images stay among the unlabeled ones."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and stop; with --minutes, some training steps are timed.")
    ] = False,
) -> None:
    """Do everything: from images and a few masks to masks for all images.

    Also writes student.onnx and a report.
    """
    fetch_weights([representation, student], download, accept_license)
    task = task_of("run")
    options = {"representation": representation, "size": size, "minutes": minutes, "student": student, "seed": seed}
    options |= {"auto_minutes": auto_minutes, "preview": preview, "compact": compact, "check_masks": check_masks}
    show(task(images, labels, out, **options, rgb_masks=rgb_masks, dry_run=dry_run, cache=cache))


@app.command(epilog="Example:  partshot bench representations --data toy-face --out tables/")
def bench(
    table: Annotated[
        str,
        typer.Argument(
            help="representations, heads, layers, moco-vs-simsiam, pretraining, gan-images, inversion, shift, "
            "or supervised."
        ),
    ],
    data: Annotated[
        str, typer.Option("--data", "-d", help="toy-face, toy-car, toy-horse, or a folder with images/ and masks/.")
    ] = "toy-face",
    out: Annotated[Path, typer.Option("--out", "-o", file_okay=False, help="Folder for the tables.")] = Path(
        "partshot-bench"
    ),
    work: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder for what is trained; default: OUT/work.")
    ] = None,
    ks: Annotated[str, typer.Option(help="Numbers of labels, comma-separated; default: 1,5,10.")] = "",
    seeds: Annotated[str, typer.Option(help="Splits of the labels, comma-separated; default: the data's.")] = "",
    size: Size = None,
    kimg: Annotated[float | None, typer.Option(help="Thousands of images that each encoder sees.")] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Of contrastive encoders: small-folder (the default), small-folder-gpu, ganorcon; after a comma "
            "another for one pretext, as in small-folder-gpu,moco=small-folder-long."
        ),
    ] = None,
    student_kimg: Annotated[float | None, typer.Option(help="Thousands of shots that each student sees.")] = None,
    generator: Generator = None,
) -> None:
    """Compare representations, heads and more on the same splits.

    Writes the table as Markdown and JSON with a plot, and the recipe of every row. Resumes after a stop.
    """
    options = {"data": data, "out": out, "work": work, "size": size, "kimg": kimg, "generator": generator}
    options |= {"preset": preset, "student_kimg": student_kimg}
    show(task_of("bench")(table, ks=numbers("ks", ks), seeds=numbers("seeds", seeds), **options))


@app.command(epilog="Example:  partshot encoders dinov2-small --download")
def encoders(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Encoders to show in detail, or with --download to get; default: all."),
    ] = None,
    download: Download = False,
    accept_license: AcceptLicense = None,
) -> None:
    """List pretrained encoders, and which are on this machine.

    Each can be given as --representation where it is on this machine, or with --download. Nothing is downloaded without
    --download.
    """
    options = {"download": download, "accept_license": accept_license or (), "ask": asker()}
    show(task_of("encoders")(names or (), fetch=download, **options))
