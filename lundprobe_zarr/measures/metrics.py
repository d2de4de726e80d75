"""Metrics of a dose-volume histogram as texts: `D98%`, `V38.43Gy[cc]`, `mean`, `HI`, `CI` …

Homogeneity index: (D2% − D98%) / D50%, ICRU Report 83, Prescribing, Recording, and Reporting
Photon-Beam Intensity-Modulated Radiation Therapy (IMRT), J ICRU 10(1), 2010.

Conformity index: TV_PIV² / (TV × PIV), with the target's volume TV, the volume PIV that receives at
least the dose, and the volume TV_PIV of the target that does: Paddick, A simple scoring ratio to
index the conformity of radiosurgical treatment plans, J Neurosurg 93 (Suppl 3), 2000, 219-222.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from fractions import Fraction
from math import inf, nan

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.measures.dose_volume import voxels_for_percent, voxels_for_volume
from lundprobe_zarr.measures.histogram import UNKNOWN, Bounds, Doses
from lundprobe_zarr.vocabulary.names import PRESCRIPTION_GY

#: The structure in which the volume of an isodose is counted.
BODY = "BODY"
#: What metrics there are, for messages and help.
GRAMMAR = (
    "Dx% or Dxcc, with [Gy] or [%] of the prescription; VxGy or Vx% of the prescription, with [%] "
    "or [cc]; mean, min or max, with [Gy] or [%]; HI; CI, CI[xGy] or CI[x%]"
)
_NUMBER = r"(?P<amount>[0-9]+(?:\.[0-9]+)?)"
_FORMS = {
    "D": re.compile(rf"D{_NUMBER}(?P<of>%|cc)(?:\[(?P<unit>Gy|%)\])?"),
    "V": re.compile(rf"V{_NUMBER}(?P<of>Gy|%)(?:\[(?P<unit>%|cc)\])?"),
    "mean": re.compile(r"mean(?:\[(?P<unit>Gy|%)\])?"),
    "min": re.compile(r"min(?:\[(?P<unit>Gy|%)\])?"),
    "max": re.compile(r"max(?:\[(?P<unit>Gy|%)\])?"),
    "HI": re.compile(r"HI"),
    "CI": re.compile(rf"CI(?:\[{_NUMBER}(?P<of>Gy|%)\])?"),
}
_UNITS = {"D": "Gy", "V": "%", "mean": "Gy", "min": "Gy", "max": "Gy", "HI": "1", "CI": "1"}


@dataclass(frozen=True)
class Metric:
    """A parsed metric: `text` as given, its `kind` and `amount` of `of`; `unit` of its values."""

    text: str
    kind: str
    amount: Fraction
    of: str
    unit: str

    @property
    def dose_gy(self) -> float:
        """The dose of a V or CI, Gy."""
        return float(self.amount) if self.of == "Gy" else _of_prescription(self.amount)


def parse_metric(text: str) -> Metric:
    """Parse a metric; raise `UsageError` with the nearest right one."""
    for kind, form in _FORMS.items():
        found = form.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            continue
        named = found.groupdict()
        amount, of = Fraction(named.get("amount") or 100), named.get("of") or "%"
        if kind in ("D", "CI") and (not amount or (kind == "D" and of == "%" and amount > 100)):
            expected = "more than 0, and at most 100 %" if kind == "D" else "a dose above 0"
            raise UsageError(f"metric {text!r}", expected=expected)
        return Metric(text, kind, amount, of, named.get("unit") or _UNITS[kind])
    near = _nearest(str(text))
    raise UsageError(
        f"no metric {text!r}",
        expected=GRAMMAR,
        remedy=f"nearest: {', '.join(near)}" if near else None,
    )


def parse_metrics(texts: str | Iterable[str]) -> list[Metric]:
    """Parse one metric or several, each once; raise as `parse_metric` does, and for none."""
    listed = dict.fromkeys([texts] if isinstance(texts, str) else texts)
    if not listed:
        raise UsageError("no metrics", expected=GRAMMAR)
    return [parse_metric(text) for text in listed]


#: Other spellings of units and words.
_SPELT = (
    (re.compile(r"[\s()_=]"), ""),
    (re.compile(r","), "."),
    (re.compile(r"cm\^?3|cm³|ccm|ml"), "cc"),
    (re.compile(r"percent|pct|％"), "%"),
    (re.compile(r"gray|grays"), "gy"),
    (re.compile(r"^d(mean|min|max)|^(mean|min|max)dose|^(mean|min|max)imum"), r"\1\2\3"),
    (re.compile(r"^d?(average|avg)$"), "mean"),
    (re.compile(r"^d?median$"), "d50%"),
    (re.compile(r"^(homogeneity|hi).*"), "hi"),
    (re.compile(r"^(conformity|conformality|paddick|pci)(index)?"), "ci"),
)
_LOOSE = re.compile(r"([dv]|ci)\[?([0-9]+\.?[0-9]*)(%|cc|gy)?\]?(?:\[?(%|cc|gy)\]?)?")
#: Of what a number may be, and the units of values, by the letter before it.
_MEANT = {
    "d": ("D{}{}", ("%", "cc"), ("Gy", "%")),
    "v": ("V{}{}", ("Gy", "%"), ("%", "cc")),
    "ci": ("CI[{}{}]", ("Gy", "%"), ()),
}
_EXAMPLES = ("D98%", "D0.03cc", "V38.43Gy[cc]", "V95%", "mean", "min", "max", "HI", "CI")


def _nearest(text: str) -> list[str]:
    """Return right metrics that `text` may mean, the nearest first."""
    plain = text.strip().lower()
    for pattern, right in _SPELT:
        plain = pattern.sub(right, plain)
    found = _LOOSE.fullmatch(plain)
    if found is None:
        known = {e.lower(): e for e in _EXAMPLES}
        if plain in known:
            return [known[plain]]
        return [known[n] for n in get_close_matches(plain, known, 2, cutoff=0.5)]
    letter, number, of, unit = (g.replace("gy", "Gy").rstrip(".") for g in found.groups(""))
    form, kinds, units = _MEANT[letter]
    end = f"[{unit}]" if unit in units else ""
    return [form.format(number, kind) + end for kind in kinds if of == kind or of not in kinds]


def _of_prescription(percent: Fraction) -> float:
    return PRESCRIPTION_GY * float(percent) / 100  # as the V-columns of `structures` have it


def needs_body(metrics: Iterable[Metric]) -> bool:
    """Whether the doses of BODY are needed too."""
    return any(m.kind == "CI" for m in metrics)


def measure(metric: Metric, doses: Doses, body: Doses | None = None) -> Bounds:
    """Return a metric's value in its unit; unknown where there is none.

    `body` are the doses of BODY on the same grid, in which an isodose's volume is counted.
    """
    if metric.kind == "HI":
        return _homogeneity(doses)
    if metric.kind == "CI":
        return UNKNOWN if body is None else _conformity(metric.dose_gy, doses, body)
    if metric.kind == "V":
        return _volume(metric, doses)
    found = _dose(metric, doses)
    return _scaled(found, 100 / PRESCRIPTION_GY) if metric.unit == "%" else found


def _dose(metric: Metric, doses: Doses) -> Bounds:
    if metric.kind == "mean":
        return doses.mean()
    if metric.kind == "min":
        return doses.dose_of(doses.voxels)
    if metric.kind == "max":
        return doses.dose_of(1)
    if metric.of == "%":
        return doses.dose_of(voxels_for_percent(metric.amount, doses.voxels))
    return doses.dose_of(voxels_for_volume(float(metric.amount), doses.voxel_cc))


def _volume(metric: Metric, doses: Doses) -> Bounds:
    if not doses.voxels:
        return UNKNOWN
    count = doses.count_at(metric.dose_gy)
    return _scaled(count, doses.voxel_cc if metric.unit == "cc" else 100 / doses.voxels)


def _scaled(bounds: Bounds, factor: float) -> Bounds:
    return Bounds(*(factor * number for number in bounds))


def _homogeneity(doses: Doses) -> Bounds:
    near_max, near_min, median = (
        doses.dose_of(voxels_for_percent(x, doses.voxels)) for x in (2, 98, 50)
    )
    if not median.high > 0:
        return UNKNOWN
    return Bounds(
        (near_max.value - near_min.value) / median.value,
        max(0.0, near_max.low - near_min.high) / median.high,
        (near_max.high - near_min.low) / median.low if median.low > 0 else inf,
    )


def _conformity(gy: float, target: Doses, body: Doses) -> Bounds:
    inside, isodose = target.count_at(gy), body.count_at(gy)
    return Bounds(
        _paddick(inside.value, target.voxels, isodose.value),
        _paddick(inside.low, target.voxels, isodose.high),
        _paddick(inside.high, target.voxels, isodose.low),
    )


def _paddick(inside: float, target: float, isodose: float) -> float:
    """The index of numbers of voxels of one size; NaN where no volume receives the dose."""
    if not inside:
        return 0.0 if target and isodose else nan
    return inside**2 / (target * isodose) if isodose else inf
