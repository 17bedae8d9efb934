"""``segcft report | figure | inspect``: options first, libraries when there is something to do."""

from pathlib import Path

from segcft.core.parsing import PlainParser


def report(arguments: list[str]) -> None:
    """One page from results folders."""
    parser = PlainParser("report", "One page from results folders: which method is best, by how much, at what cost.")
    parser.add_argument("results", nargs="+", help="folders that segcft evaluate or segcft study wrote")
    parser.add_argument("--out", default="report.html", help="file to write: .html or .md")
    options = parser.parse_args(arguments)
    from segcft.reporting.report import report as write  # lazily: --help needs no libraries

    print(f"report: {write(**vars(options))}")


def figure(arguments: list[str]) -> None:
    """A panel for a paper from a results folder."""
    parser = PlainParser("figure", "Rows of interventions: factual image, counterfactual and change of every method.")
    parser.add_argument("results", help="folder that segcft evaluate or segcft study wrote")
    parser.add_argument("--out", default="figure.pdf", help="file to write: .pdf, .svg or .png")
    parser.add_argument("--methods", nargs="+", help="columns, in this order; by default all")
    parser.add_argument("--variables", nargs="+", help="rows; by default all")
    parser.add_argument("--subjects", type=int, default=1, help="number of subjects, of those that were kept")
    parser.add_argument("--steps", type=int, nargs="+", help="which of the seven values, from 0; by default both ends")
    parser.add_argument("--dpi", type=int, default=300, help="of a PNG, and of the images inside the others")
    options = parser.parse_args(arguments)
    from segcft.reporting.figure import figure as draw  # lazily, as above

    print(f"figure: {draw(**vars(options))}")


def inspect(arguments: list[str]) -> None:
    """One page that shows what a prepared data set holds."""
    parser = PlainParser("inspect", "Contact sheet, histograms, correlations, counts and missing values of a data set.")
    parser.add_argument("cache", type=Path, help="folder that segcft prepare made")
    parser.add_argument("--out", help="folder for inspection.png and .md; by default results/NAME-OF-THE-CACHE")
    parser.add_argument("--images", type=int, default=18, help="subjects on the contact sheet")
    parser.add_argument("--seed", type=int, default=0, help="of their choice")
    parser.add_argument("--verify", action="store_true", help="read everything and compare with the recorded SHA-256")
    options = parser.parse_args(arguments)
    from data_modules.preparation.inspect import inspect as show  # lazily, as above

    show(**vars(options) | {"cache": str(options.cache)})
