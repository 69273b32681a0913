"""What became of the subspace: singular values against noise, the rows of A, the noise's share.

All of it follows from released values and the public plan.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from fedsvd.pages import BLUE, GREEN, GREY, ORANGE, canvas, label, legend, plot
from fedsvd.recorders.curves import Figure, History, figure_of

Spectra = Mapping[str, Sequence[float]]


def story(history: History, values: Spectra) -> list[Figure]:
    """Return the figures of singular values, of the rows of A and of the noise's share."""
    drawn = (spectra(history, values), rows(history), share(history))
    return [figure for figure in drawn if figure is not None]


def spectra(history: History, values: Spectra) -> Figure | None:
    """Return the singular values of the final update, and how far they stand above noise."""
    if not any(value > 0 for one in values.values() for value in one):
        return None
    figure, (axis,) = canvas(1)
    _lines(axis, values)
    axis.set_yscale("log")
    label(axis, "index", "singular value of the update")
    plots = [plot(figure, f"Singular values of the update in each of {len(values)} layers")]
    note = "A line for every layer."
    last = next((m for m in reversed(history) if m.get("noise_ratios")), None)
    if last is not None:
        found = last["noise_ratios"]
        each = [x for one in found.values() for x in one]
        above = sum(x > 1 for x in each)
        plots.append(_against_noise(found, last.get("noise_floor")))
        note += (
            " Right: the same after the last round, each divided by the largest that noise alone "
            "would have. That follows from the noise multipliers, clip, batch sizes and steps of the "
            f"ledger, by the edge of the spectrum of a random matrix. {above} of {len(each)} stand "
            "above it. A value in the band cannot be told from noise by its size."
        )
    return figure_of("Singular values", plots, note)


def _against_noise(ratios: Spectra, floor: float | None) -> str:
    figure, (axis,) = canvas(1)
    low = 0.0 if floor is None else floor
    axis.axhspan(low, 1.0, color=ORANGE, alpha=0.2, lw=0, label="noise alone")
    axis.axhline(1.0, color=ORANGE, lw=1)
    _lines(axis, ratios)
    axis.set_ylim(bottom=0)
    label(axis, "index", "singular value / largest of noise alone")
    legend(axis)
    each = [x for one in ratios.values() for x in one]
    return plot(
        figure, f"Singular values over the noise's largest, {min(each):.3g} to {max(each):.3g}"
    )


def _lines(axis: Any, values: Spectra) -> None:
    marker = "." if max(map(len, values.values())) < 2 else ""
    for one in values.values():
        at = range(1, len(one) + 1)
        axis.plot(at, one, lw=1, color=BLUE, alpha=0.6, marker=marker)


def rows(history: History) -> Figure | None:
    """Return how far the rows of A moved, as a space and by themselves."""
    told = [m for m in history if "A_space" in m]
    if not told:
        return None
    rounds = [m["round"] for m in told]
    figure, (axis,) = canvas(1)
    named = (
        ("A_rows", GREY, "each row, in the round"),
        ("A_space", BLUE, "row space, in the round"),
        ("A_space_start", ORANGE, "row space, since the start"),
    )
    for key, colour, name in named:
        axis.plot(rounds, [m[key] for m in told], color=colour, lw=1.2, marker=".", label=name)
    axis.set_ylim(-0.03, 1.03)
    label(axis, "round", "distance, 0 to 1")
    legend(axis)
    space, turned = max(m["A_space"] for m in told), max(m["A_rows"] for m in told)
    end = told[-1]["A_space_start"]
    if end < 1e-3 and space < 1e-3:
        said = "The row space of A did not move"
        said += ": its rows turned within it." if turned > 1e-3 else ", nor did its rows."
    else:
        said = f"The row space of A ended at a distance of {end:.3f} from its start."
    note = (
        f"{said} Means over layers. A distance is the root of the mean squared sine of the angles: "
        "principal angles for spaces, the angle between a row and the same row before for rows."
    )
    return figure_of("Where A moved", [plot(figure, said)], note)


def share(history: History) -> Figure | None:
    """Return the part of each round's released mean update that is noise."""
    told = [(m["round"], m["noise_share"]) for m in history if m.get("noise_share") is not None]
    told = [(number, x) for number, x in told if math.isfinite(x)]
    if not told:
        return None
    figure, (axis,) = canvas(1)
    rounds, found = [number for number, _ in told], [min(1.0, x) for _, x in told]
    axis.plot(rounds, found, color=GREEN, marker=".", lw=1.2)
    axis.fill_between(rounds, found, color=GREEN, alpha=0.15, lw=0)
    axis.set_ylim(0, 1.03)
    label(axis, "round", "share of the update's energy")
    said = (
        f"{100 * fmean(found):.0f} % of the energy of the released mean update was noise on average "
        f"over rounds, {100 * median(found):.0f} % in the middle round."
    )
    note = (
        f"{said} It is the expected energy of the noise, from the ledger's noise multipliers, over "
        "the energy found in what clients released. Averaging over rounds lowers it: see the "
        "singular values for what was left in the end."
    )
    return figure_of("Share of the update that is noise", [plot(figure, said)], note)
