"""The stage report: the artifact for people, as text and as a page for a browser."""

import io
from pathlib import Path

from rich.console import Console

from quantlab.errors import ConfigError, QuantlabError
from quantlab.files import write_whole
from quantlab.pipeline.compare import read_code_counts, read_facts
from quantlab.pipeline.stages.evaluate import EvaluateStage
from quantlab.pipeline.stages.options import ReportOptions
from quantlab.pipeline.stages.pack import ARTIFACT_NAME, PackStage
from quantlab.pipeline.stages.stage import Done, Job, Stage
from quantlab.report.compare import compare
from quantlab.report.entry import Entry
from quantlab.report.evaluation import read_evaluation
from quantlab.report.packing import PackReport, read_report
from quantlab.report.table import render

TEXT_NAME, PAGE_NAME = "report.txt", "report.html"
WIDTH = 140


class ReportStage:
    """Every tensor and byte of the artifact, and what it scored."""

    def __init__(self, options: ReportOptions, packed: PackStage, evaluated: EvaluateStage | None) -> None:
        self.options, self.packed, self.evaluated = options, packed, evaluated
        after = (packed.stage, evaluated.stage) if evaluated else (packed.stage,)
        self.stage = Stage(name="report", inputs={"html": options.html}, after=after, work=self._work)

    def check(self) -> None:
        """Raise ConfigError if the page needs packages that are not installed: before hours are spent."""
        if not self.options.html:
            return
        from quantlab.report.html import check_packages

        try:
            check_packages()
        except QuantlabError as error:
            raise ConfigError(f"report.html: {error}", hint=f"{error.hint}, or set report.html = false") from error

    def _work(self, job: Job) -> Done:
        packing = read_report(self.packed.report(job.root))
        write_whole(job.folder / TEXT_NAME, report_text(packing).encode())
        if not self.options.html:
            return Done(outputs=[TEXT_NAME])
        write_whole(job.folder / PAGE_NAME, self._page(job.root, packing).encode())
        return Done(outputs=[TEXT_NAME, PAGE_NAME])

    def _page(self, root: Path, packing: PackReport) -> str:
        from quantlab.report.html import render_page  # plotly takes a second to load

        artifact = self.packed.artifact(root)
        evaluation = read_evaluation(self.evaluated.evaluation(root)) if self.evaluated else None
        entry = Entry(path=ARTIFACT_NAME, file=read_facts(artifact), report=packing, evaluation=evaluation)
        return render_page(compare([entry]), [entry], [read_code_counts(artifact)])


def report_text(packing: PackReport) -> str:
    """The report as `quantlab pack` prints it; in a notebook too, where rich would show it instead of writing it."""
    text = io.StringIO()
    Console(file=text, width=WIDTH, highlight=False, markup=False, emoji=False, force_jupyter=False).print(render(packing))
    return text.getvalue()
