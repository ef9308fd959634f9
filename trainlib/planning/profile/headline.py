"""What a profile says in sentences: what limits the step, what to mend first, what was assumed."""

from __future__ import annotations

from trainlib.planning.profile.figures import Profile, percent, size, time

NOTABLE = 0.01  # of the step: what takes less is no headline


def summary(profile: Profile) -> str:
    """One sentence: time, MFU, traffic."""
    what = "MFU" if profile.subject.flops is not None else "of the peak"
    share = percent(profile.mfu)
    reached = f"{what} {share}" if what == "MFU" else f"{share} {what}"
    return (
        f"{profile.subject.name} on {profile.subject.target}: {time(profile.seconds)} predicted, "
        f"{reached}, {size(profile.ledger.hbm_bytes)} through HBM "
        f"({percent(profile.hbm_share)} of its bandwidth)"
    )


def limits(profile: Profile) -> str:
    """One or two sentences: where the time goes, and which roof is near."""
    if not profile.seconds:
        return "The program takes no time that the compiler would name."
    parts = [
        f"{_NAMES[family]} {percent(seconds / profile.seconds)}"
        for family, seconds in sorted(profile.families, key=lambda part: -part[1])[:3]
        if seconds >= NOTABLE * profile.seconds
    ]
    bounds = profile.schedule.bounds
    name = max(bounds, key=lambda key: bounds[key], default="")
    text = f"Of the time {_listed(parts)}."
    if name:
        text += (
            f" The nearest bound is {_BOUNDS[name]}: no schedule of this program takes less than "
            f"{time(bounds[name])} ({percent(bounds[name] / profile.seconds)} of the prediction)."
        )
    return text


_NAMES = {
    "products": "matrix products and convolutions take",
    "kernels": "kernels take",
    "elementwise": "elementwise passes and reductions take",
    "copies": "copies take",
    "gathers": "gathers, scatters and sorts take",
    "collectives": "collectives take",
    "other": "other operations take",
    "(waiting)": "waiting takes",
}
_BOUNDS = {
    "arithmetic": "the arithmetic at the peak",
    "memory": "the traffic through HBM",
    "links": "the busiest link",
}


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def findings(profile: Profile, count: int = 3) -> list[str]:
    """What to mend first, a sentence each: what the program does without need, what the core waits
    for, and the layers that lose most against their roofs; the dearest first.
    """
    found: list[tuple[float, str]] = [
        (one.seconds, one.text)
        for one in profile.ledger.findings
        if one.kind not in ("uncounted", "left out")
    ]
    for what, seconds in profile.waits:
        found.append((seconds, f"The core waits {_part(profile, seconds)} for {what}."))
    by = "layer" if profile.is_named else "op"
    for row in sorted(profile.rows(by, alike=True), key=lambda row: -row.lost)[:count]:
        found.append(
            (
                row.lost,
                f"{row.name} takes {_part(profile, row.seconds)}, {time(row.lost)} more than its "
                f"arithmetic and its bytes need: {percent(row.of_peak)} of the peak, "
                f"{percent(row.of_bandwidth)} of HBM's bandwidth.",
            )
        )
    notable = [one for one in found if one[0] >= NOTABLE * profile.seconds]
    return [text for _, text in sorted(notable, key=lambda one: -one[0])[:count]]


def _part(profile: Profile, seconds: float) -> str:
    return f"{time(seconds)} ({percent(seconds / profile.seconds)} of the time)"


def uncounted(profile: Profile) -> str:
    """One sentence about what carries no estimate of the compiler, or ""."""
    operations = profile.ledger.uncounted
    if not operations:
        return ""
    seconds = sum(profile.seconds_of(one) for one in operations)
    kinds = sorted({one.kind for one in operations})
    carry = "operation carries" if len(operations) == 1 else "operations carry"
    return (
        f"{len(operations)} {carry} no estimate of the compiler ({', '.join(kinds)}): at least "
        f"{time(seconds)}, a bound from bytes and single numbers; a chip may take longer."
    )


def left_out(profile: Profile) -> list[str]:
    """What the figures leave out or assume, a sentence each, the dearest first."""
    return [one.text for one in profile.ledger.findings if one.kind == "left out"]


def honest(profile: Profile) -> str:
    """Where the figures come from, and what a chip would have to say."""
    return (
        f"All of this is what the TPU compiler expects (libtpu {profile.ledger.compiler}); nothing "
        "was run on a device. Figures of two versions of libtpu are not to be compared. On a chip "
        "one would have to measure the time as a whole, that of the longest operations (training "
        "writes a trace with --profile), and the memory at the peak."
    )
