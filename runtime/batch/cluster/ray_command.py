"""python -m runtime … --engine ray: the same labels, worked out by a cluster."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from ...command.line import PACKAGE, complain
from ...command.progress import Cadence
from ...errors import DONE, FAILED, INTERRUPTED
from ...text import counted, printable
from ...writing import refuse_name_of_a_file
from ..columns import Labels
from ..inputs import no_images
from ..options import RunOptions, UsageError
from ..report import and_more, left_out_lines
from .chunks import Job, Summary
from .parts import Parts, begin
from .ray_cluster import cluster
from .ray_engine import EngineError, label_on_cluster
from .sources import bare, check, is_uri

_SHOWN = 10  # classes and kinds of failures that the summary names
_LONGEST = 200  # characters of each


class ClusterReport:
    """Show progress on standard error, and sum up: in place on a terminal, in a log a line each 30 s."""

    def __init__(self) -> None:
        self.total = Summary()
        self._began = time.monotonic()
        self._first: float | None = None  # when the first part was written
        self._cadence = Cadence()

    def add(self, summary: Summary) -> None:
        """Count a part that was written."""
        self.total.add(summary)
        self._first = self._first or time.monotonic()
        if self._cadence.due():
            self._cadence.print(self._line())

    def summary(self) -> str:
        """Return the images, the rate, the largest classes and the failures by kind."""
        total = self.total
        during = f" in {time.monotonic() - self._began:.1f} s"
        if self._first is not None:
            during += f" (the first part after {self._first - self._began:.1f} s)"
        lines = [self._line(during)]
        if total.skipped:
            lines[0] += f"; {total.skipped:,} were done before"
        lines += [f"{n:9,}  {_shown(label)}" for label, n in total.classes.most_common(_SHOWN)]
        lines += and_more(len(total.classes) - _SHOWN, "class", "classes")
        lines += [f"{n:9,}  failed: {_shown(kind)}" for kind, n in total.failures.most_common(_SHOWN)]
        lines += and_more(
            len(total.failures) - _SHOWN, "kind of failure", "kinds of failures", told=", told in the output"
        )
        lines += left_out_lines(total.left_out)
        self._cadence.clear()
        return "\n".join(lines)

    def _line(self, during: str = "") -> str:
        rate = self.total.images / max(time.monotonic() - self._began, 1e-9)
        done = f"{counted(self.total.images, 'image')}{during}"
        return f"{done}, {rate:.1f} per second, {self.total.failed:,} failed"


def run(options: RunOptions) -> int:
    """Label what the options of `python -m runtime` say, and return the exit code.

    Raises:
        UsageError: if an option has no meaning on a cluster.
        ClusterError: if there is no cluster at the address.
        ArtifactError: if the model cannot be used.
        OutputError: if the output cannot be begun or resumed.
        PlaceError: if a source is not there.
    """
    _check(options)
    base = str(Path.cwd())
    images = list(options.images)
    check(images, base)
    labels = Labels(options.model, sha256=options.sha256, top=options.top, max_pixels=options.max_pixels)
    labels.classifier().warm_up()
    parts, known = begin(
        str(options.output),
        labels.sha256,
        form=options.part_format,
        resume=options.resume,
        overwrite=options.overwrite,
        top=options.top,
    )
    size = Path(labels.model).stat().st_size
    report = ClusterReport()
    try:
        with cluster(options.address, workers=options.workers, model_bytes=size) as cores:
            job = Job(images, base, parts, options.part_images, cores, options.all_files)
            return _label(job, known, labels, options.workers, report)
    except KeyboardInterrupt:
        return _end(report, INTERRUPTED, f"interrupted; {_how_to_go_on(parts)}")


def _label(job: Job, known: list[str], labels: Labels, workers: int | None, report: ClusterReport) -> int:
    try:
        for summary in label_on_cluster(job, known, labels, workers=workers):
            report.add(summary)
    except EngineError as error:
        return _end(report, FAILED, f"{error}; {_how_to_go_on(job.parts)}")
    late = job.parts.drop_late(known)
    if report.total.images + report.total.skipped == 0:
        raise UsageError(no_images(map(bare, job.sources), report.total.left_out))
    code = _end(report, FAILED if report.total.failed else DONE, "")
    if late:
        print(
            f"removed {counted(late, 'part')} that the interrupted run had written too late", file=sys.stderr
        )
    return code


def _shown(text: str) -> str:
    return printable(text, longest=_LONGEST)


def _check(options: RunOptions) -> None:
    if options.output is None:
        raise UsageError("--engine ray needs --output DIR (a folder that every node sees, or a URI)")
    if not is_uri(options.output):
        refuse_name_of_a_file(Path(options.output))
    if options.format == "csv":
        raise UsageError("--engine ray writes --format parquet or jsonl, found csv")
    if options.device not in ("auto", "cpu"):
        raise UsageError(f"--engine ray labels on CPU cores, found --device {options.device}")
    if "-" in options.images:
        raise UsageError("--engine ray reads no standard input; give a Parquet file with a column path")
    wrong = [name for name in ("sort_into", "copy", "null", "unordered") if getattr(options, name)]
    wrong += [name for name in ("min_score", "embeddings") if getattr(options, name) is not None]
    if wrong:
        names = ", ".join("--" + name.replace("_", "-") for name in wrong)
        raise UsageError(f"{names}: not possible with --engine ray")


def _how_to_go_on(parts: Parts) -> str:
    return f"what is done is in {bare(parts.uri)}, the same command with --resume goes on"


def _end(report: ClusterReport, code: int, why: str) -> int:
    print(report.summary(), file=sys.stderr)
    if why:
        return complain(PACKAGE, why, code)
    return code
