"""Who is best, by how much, at what cost, and what to doubt: computed from the numbers, said in plain words."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from segcft.evaluation.bootstrap import Array, Estimate, estimate
from segcft.evaluation.summary import drawn_metrics
from segcft.reporting.load_results import TRUTH, UNCHANGED, Run

Status = Literal["alarm", "doubt", "fine", "note"]
NEAR_FLOOR = 1.5  # times the floor: closer than that, the evaluator's own error blurs the ranking


@dataclass(frozen=True)
class Check:
    """One reason to trust the numbers, or not to."""

    status: Status
    title: str
    text: str


class Findings:
    """What follows from a run.

    Means over questions are of the same resamples that the tables' intervals are of: pairs stay pairs.

    Attributes:
        run: Read from its folder.
        score: Metric that methods are ranked by: MAPE where every variable is a size, else in training deviations.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        sizes = all(math.isfinite(found["mape"].value) for found in run.metrics[UNCHANGED].values())
        self.score = "mape" if sizes else "mae_sd"

    @property
    def unit(self) -> str:
        """Of the score."""
        return "%" if self.score == "mape" else "% of a deviation"

    @cached_property
    def drawn(self) -> dict[str, dict[str, Array]]:
        """Method -> metric -> mean over the questions, of all resamples, the data's own first."""
        crossed = len(self.run.seeds) > 1
        found = drawn_metrics(self.run.rows, ("seed", "subject") if crossed else ("subject",))
        return {
            method: {name: _mean([values[name] for values in by_do.values()]) for name in next(iter(by_do.values()))}
            for method, by_do in found.items()
        }

    @cached_property
    def pooled(self) -> dict[str, dict[str, Estimate]]:
        """Method -> metric -> mean over the questions, with its interval; of the Fréchet distance without."""
        found = {}
        for method, values in self.drawn.items():
            found[method] = {name: estimate(value) for name, value in values.items()}
            for name in ("frechet", "kernel"):
                every = [by_name[name].value for by_name in self.run.metrics[method].values() if name in by_name]
                if every:
                    found[method][name] = Estimate(float(np.mean(every)), math.nan, math.nan)
        return found

    @cached_property
    def ranked(self) -> list[str]:
        """Methods without a health alarm, the best first."""
        sound = [name for name in self.run.methods if name not in self.run.alarmed]
        return sorted(sound, key=lambda name: _last_if_unknown(self.pooled[name][self.score].value))

    @property
    def best(self) -> str | None:
        """The method that hits its targets best; None if every one has an alarm."""
        return self.ranked[0] if self.ranked else None

    @property
    def runner_up(self) -> str | None:
        """The next one."""
        return self.ranked[1] if len(self.ranked) > 1 else None

    def less(self, one: str, other: str) -> Estimate:
        """Score of one method minus that of another, paired."""
        return estimate(self.drawn[one][self.score] - self.drawn[other][self.score])

    @property
    def floor(self) -> float:
        """The evaluator's own error, mean over the questions."""
        if TRUTH in self.pooled:
            return self.pooled[TRUTH][self.score].value
        sizes = [math.isfinite(found["mape"].value) for found in self.run.metrics[UNCHANGED].values()]
        alike = all(sizes) or not any(sizes)  # else per cent of two things
        return float(np.mean(list(self.run.floor.values()))) if alike else math.nan

    def trained(self, method: str) -> float:
        """Seconds of a method's stages; NaN if they were not recorded."""
        return sum(self.run.training[method].values()) if method in self.run.training else math.nan

    @property
    def checks(self) -> list[Check]:
        """Reasons for trust and doubt, alarms first."""
        found = [_health(self.run), self._lead(), self._floor(), self._sample(), self._rest(), self._truth()]
        order: tuple[Status, ...] = ("alarm", "doubt", "note", "fine")
        return sorted([check for check in found if check], key=lambda check: order.index(check.status))

    def _lead(self) -> Check | None:
        if self.best is None or self.runner_up is None:
            return None
        lead = self.less(self.best, self.runner_up)
        text = f"`{self.best}` minus `{self.runner_up}`: {signed(lead)} points, paired over subjects; "
        if lead.high < 0:
            return Check("fine", "The lead is no chance of the subjects", text + "the interval excludes 0.")
        return Check("doubt", "The lead may be chance", text + "the interval includes 0.")

    def _floor(self) -> Check | None:
        if self.best is None or not math.isfinite(self.floor):
            return None
        value, known = self.pooled[self.best][self.score].value, TRUTH in self.pooled
        of = "true counterfactuals" if known else "factual images"
        text = f"The evaluator itself errs by {self.floor:.1f} {self.unit} on {of}; `{self.best}` by {value:.1f}"
        if value < NEAR_FLOOR * self.floor:
            return Check("doubt", "Close to the evaluator's own error", f"{text}: smaller differences are not seen.")
        return Check("fine", "Well above the evaluator's own error", f"{text}.")

    def _sample(self) -> Check:
        run, split = self.run, self.run.content.get("split", "?")
        text = f"{run.subjects} subjects of split {split}"
        if split not in ("test", "?"):
            return Check("doubt", "Not the test split", f"{text}: choices may have been made on it.")
        if len(run.seeds) > 1:
            few = len(run.seeds) < 5
            title = "Few training seeds" if few else "Several training seeds"
            return Check("doubt" if few else "fine", title, f"{text}, {len(run.seeds)} seeds, resampled crosswise.")
        return Check("doubt", "One training run", f"{text}; intervals cover subjects, not the luck of training.")

    def _rest(self) -> Check | None:
        if self.best is None:
            return None
        own, slope = (self.pooled[self.best][name].value for name in ("leakage_mean", "slope"))
        text = f"Other structures change by {own:.2f} % on average"
        if TRUTH in self.pooled:
            text += f" (true counterfactuals by {self.pooled[TRUTH]['leakage_mean'].value:.2f} %)"
        return Check("note", "Beside the target", f"{text}; {100 * slope:.0f} % of the requested change is made.")

    def _truth(self) -> Check | None:
        if self.best is None:
            return None
        nearer = self.pooled[self.best]["nearer"].value
        if not math.isfinite(nearer):
            return Check("note", "No truth is known", "Answers are judged by measurements alone, not by true images.")
        ratio = self.pooled[self.best]["truth_ratio"].value
        text = (
            f"{100 * nearer:.0f} % of the answers are nearer to the true counterfactual than the unchanged image is; "
            f"the error to it is {ratio:.2f} of the unchanged image's."
        )
        return Check("fine" if nearer > 0.5 else "doubt", "Compared with the truth", text)


def _health(run: Run) -> Check:
    if run.warnings:
        count = f"{len(run.warnings)} health alarm{'s' if len(run.warnings) > 1 else ''}"
        return Check("alarm", count, "A method pleases its own guide more than the independent evaluator.")
    known = any(math.isfinite(v["gap"].value) for name in run.methods for v in run.metrics[name].values())
    if not known:
        return Check("note", "No guide to compare with", "No method says what its own guide measures in its answers.")
    return Check("fine", "No health alarm", "No method pleases its own guide more than the independent evaluator.")


def headline(findings: Findings) -> list[str]:
    """The answer in sentences; names stand between backquotes."""
    run, best = findings.run, findings.best
    if best is None:
        lowest = min(run.methods, key=lambda name: _last_if_unknown(findings.pooled[name][findings.score].value))
        return [f"No method is free of health alarms. `{lowest}` has the lowest error, but its guide is being gamed."]
    own, nothing = (findings.pooled[name][findings.score] for name in (best, UNCHANGED))
    many = f"{len(run.questions)} variables" if len(run.questions) > 1 else run.questions[0]
    text = [
        f"`{best}` hits its targets best: {own.value:.1f} {findings.unit} off ({ranged(own)}) over {many}, "
        f"where the unchanged image is {nothing.value:.1f} {findings.unit} off."
    ]
    if findings.runner_up:
        lead = findings.less(best, findings.runner_up)
        sure = "" if lead.high < 0 else ", which may be chance"
        text.append(f"It is ahead of `{findings.runner_up}` by {signed(_minus(lead))} points{sure}.")
    spent = findings.trained(best)
    if math.isfinite(spent):
        text.append(f"Its training took {duration(spent)}.")
    elif run.seconds:
        text.append(f"All stages of all methods took {duration(sum(run.seconds.values()))} of training.")
    return text


def verdict(checks: list[Check]) -> str:
    """All checks in a sentence.

    >>> verdict([Check("doubt", "Few seeds", ""), Check("fine", "No alarm", "")])
    'With 1 reservation.'
    """
    alarms, doubts = (sum(check.status == status for check in checks) for status in ("alarm", "doubt"))
    if alarms:
        return f"Not all of it: {alarms} alarm{'s' if alarms > 1 else ''}."
    if doubts:
        return f"With {doubts} reservation{'s' if doubts > 1 else ''}."
    return "Yes, as far as it was checked."


def ranged(found: Estimate, style: str = "{:.1f}") -> str:
    """The interval alone."""
    return f"{style.format(found.low)} to {style.format(found.high)}"


def signed(found: Estimate) -> str:
    """Value and interval, two digits after the point and a true minus."""
    value, low, high = (f"{each:.2f}".replace("-", "\N{MINUS SIGN}") for each in found)
    return f"{value} ({low} to {high})"


def duration(seconds: float) -> str:
    """Time for people.

    >>> duration(45), duration(1349.5), duration(9000)
    ('45 s', '22 min', '2 h 30 min')
    """
    if not math.isfinite(seconds):
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _minus(found: Estimate) -> Estimate:
    return Estimate(-found.value, -found.high, -found.low)


def _mean(values: list[Array]) -> Array:
    """Over questions that define it, by the data's own value."""
    known = [value for value in values if np.isfinite(value[0])]
    found: Array = np.mean(known, axis=0) if known else np.full_like(values[0], np.nan)
    return found


def _last_if_unknown(value: float) -> float:
    return value if math.isfinite(value) else math.inf
