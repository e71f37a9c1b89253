"""The tables of a study's page."""

import math

from aligngpt.study.analysis.analysing import Analysis
from aligngpt.study.analysis.contrasts import Difference
from aligngpt.study.analysis.loading import Condition
from aligngpt.study.analysis.student import Estimate
from aligngpt.study.analysis.words import UNKNOWN, interval, mean_and_interval, number, p_value, table
from aligngpt.study.arms import ARMS


def primary(analysis: Analysis) -> str:
    """Every primary contrast, one row per outcome."""
    rows = []
    for one in analysis.primary:
        arms = f"`{one.first.arm}` − `{one.second.arm}`"
        place = (arms, analysis.results.share(one.first.noise), str(len(one.seeds)))
        related = number(one.correlation, 2) if math.isfinite(one.correlation) else UNKNOWN
        tested = _tested(one.log_probability, 1, 3), _tested(one.accuracy, 100, 2)
        rows.append([*place, "log-probability (nats)", *tested[0][:2], related, *tested[0][2:], f"**{one.verdict}**"])
        rows.append([*place, "accuracy (points)", *tested[1][:2], "", *tested[1][2:], ""])
    header = ["arms", "bad captions", "seeds", "outcome", "mean difference (95 % interval)", "SD over seeds"]
    header += ["correlation", "bootstrap interval", "p (Holm)", "p of equivalence", "seeds needed", "verdict"]
    return table(header, rows)


def calibration(analysis: Analysis) -> str:
    """Squared error of the confidence and calibration error of the primary contrasts."""
    rows = [
        [
            f"`{one.first.arm}` − `{one.second.arm}`",
            analysis.results.share(one.first.noise),
            str(len(one.seeds)),
            _signed(one.squared_error, 1, 4),
            _signed(one.calibration, 1, 4),
        ]
        for one in analysis.primary
    ]
    return table(["arms", "bad captions", "seeds", "squared error of the confidence", "calibration error"], rows)


def predictions(analysis: Analysis) -> str:
    """What was expected, and what came out."""
    rows = [[one.number, one.rule, f"**{one.outcome}**", one.why] for one in analysis.predictions]
    return table(["", "prediction", "outcome", "numbers"], rows)


def pretrainings(analysis: Analysis) -> str:
    """Which arms begin with which pre-training."""
    arms: dict[str, list[str]] = {}
    for name in dict.fromkeys(condition.arm for condition in analysis.results.runs):
        arms.setdefault(ARMS[name].pretraining, []).append(f"`{name}`")
    return table(["pre-training", "of the arms"], [[f"`{name}`", ", ".join(of)] for name, of in arms.items()])


def parts(analysis: Analysis) -> str:
    """Primary contrasts at the highest share of bad captions, by kind of question and on the other tests."""
    rows = [
        [
            f"`{one.contrast.first.arm}` − `{one.contrast.second.arm}`",
            analysis.results.share(one.contrast.first.noise),
            one.what,
            f"{one.questions:,}",
            _signed(one.log_probability, 1, 3),
            _signed(one.accuracy, 100, 2),
        ]
        for one in analysis.parts
    ]
    return table(["arms", "bad captions", "questions", "number", "log-probability (nats)", "accuracy (points)"], rows)


def secondary(analysis: Analysis) -> str:
    """Every other condition against the baseline."""
    rows = [
        [
            *_condition(analysis, one.first),
            str(len(one.seeds)),
            _signed(one.log_probability.estimate, 1, 3),
            _p(one.log_probability.estimate),
            _signed(one.accuracy.estimate, 100, 2),
            _p(one.accuracy.estimate),
            _signed(one.squared_error, 1, 4),
            _signed(one.calibration, 1, 4),
        ]
        for one in analysis.secondary
    ]
    header = ["arm", "bad captions", "levels", "answers", "seeds", "log-probability (nats)", "p"]
    return table([*header, "accuracy (points)", "p", "squared error of the confidence", "calibration error"], rows)


def reached(analysis: Analysis) -> str:
    """What each condition reaches."""
    rows = [
        [
            *_condition(analysis, one.condition),
            str(one.accuracy.seeds),
            mean_and_interval(one.log_probability, decimals=3),
            mean_and_interval(one.accuracy, factor=100, decimals=2),
            mean_and_interval(one.squared_error, decimals=4),
            mean_and_interval(one.calibration, decimals=4),
        ]
        for one in analysis.levels
    ]
    header = ["arm", "bad captions", "levels", "answers", "seeds", "log-probability (nats)", "accuracy (%)"]
    return table([*header, "squared error of the confidence", "calibration error"], rows)


def dose(analysis: Analysis) -> str:
    """Slopes of the log-probability of captions over the forced level."""
    rows = [
        [
            f"`{one.condition.arm}`",
            analysis.results.share(one.condition.noise),
            str(one.condition.levels),
            str(one.right_slope.seeds),
            _signed(one.right_slope, 1, 3),
            _signed(one.wrong_slope, 1, 3),
            mean_and_interval(one.rank_correlation, decimals=2),
            "–" if one.gain is None else _signed(one.gain, 1, 3),
        ]
        for one in analysis.dose
    ]
    header = ["pre-training", "bad captions", "levels", "seeds", "right captions (nats per level)"]
    return table([*header, "wrong captions (nats per level)", "Spearman, right captions", "level N − no levels"], rows)


def detectors(analysis: Analysis) -> str:
    """The area under the ROC curve of every score, by what is wrong with the caption."""
    probe = analysis.results.questions.probe
    kinds = sorted({kind for kind in probe.kind if kind}) if probe is not None else []
    rows = [
        [
            f"`{one.condition.arm}`",
            analysis.results.share(one.condition.noise),
            analysis.results.levels_of(one.condition),
            one.score,
            mean_and_interval(one.auc, decimals=3),
            *(number(one.by_kind[kind].value, 3) for kind in kinds),
        ]
        for one in analysis.detectors
    ]
    if analysis.encoder is not None:
        auc, by_kind = analysis.encoder
        whole = f"{number(auc.value, 3)} ({interval((auc.low, auc.high), decimals=3)})"
        rows.append(["dual encoder", "–", "–", "its own score", whole, *(number(by_kind[kind], 3) for kind in kinds)])
    return table(["pre-training", "bad captions", "levels", "score", "all", *kinds], rows)


def gates(analysis: Analysis) -> str:
    """How far the gate's weights differ between kinds of question."""
    rows = []
    for one in analysis.gates:
        # Mean weights are in 0…1, and so is the difference of two of them.
        spread = one.spread._replace(low=max(0.0, one.spread.low), high=min(1.0, one.spread.high))
        known = mean_and_interval(spread, decimals=4) if one.spread.is_known else number(spread.value, 4)
        rows.append([*_condition(analysis, one.condition), str(spread.seeds), known])
    return table(["arm", "bad captions", "levels", "answers", "seeds", "largest difference between kinds"], rows)


def falsifiers(analysis: Analysis) -> str:
    """The findings that would speak against the method."""
    rows = [[f"({one.name})", one.rule, f"**{one.outcome}**", one.why] for one in analysis.falsifiers]
    return table(["", "would speak against the method", "outcome", "numbers"], rows)


def _tested(found: Difference, factor: float, decimals: int) -> list[str]:
    return [
        _signed(found.estimate, factor, decimals),
        number(found.estimate.deviation, decimals, factor=factor),
        interval(found.resampled, factor=factor, decimals=decimals, signed=True),
        p_value(found.adjusted_p) if found.estimate.is_known else UNKNOWN,
        p_value(found.equivalence_p) if found.estimate.is_known else UNKNOWN,
        "–" if found.seeds_needed is None else str(found.seeds_needed),
    ]


def _p(found: Estimate) -> str:
    return p_value(found.p) if found.is_known else UNKNOWN


def _condition(analysis: Analysis, condition: Condition) -> list[str]:
    answers = "all" if condition.answers is None else f"{condition.answers:,}"
    results = analysis.results
    return [f"`{condition.arm}`", results.share(condition.noise), results.levels_of(condition), answers]


def _signed(found: Estimate, factor: float, decimals: int) -> str:
    return mean_and_interval(found, factor=factor, decimals=decimals, signed=True)
