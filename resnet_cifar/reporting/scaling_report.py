"""The page of a scaling.json: measured and predicted throughput and efficiency, communication, cost, environment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_cifar.reporting import html_page, style
from resnet_cifar.reporting.console import duration, speed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_KINDS = {"strong": (style.FIRST, "strong: the batch is divided"), "weak": (style.SECOND, "weak: the batch grows")}
_IDEAL = (0, (1, 2))  # dash pattern
_PREDICTED = (0, (5, 2))
_MACHINE = ("cpu", "cores", "threads", "gpus", "cuda", "system", "python", "commit", "time", "job")


def write(scaling: dict[str, Any], file: Path) -> None:
    """Writes the page of `scaling`, the content of a scaling.json."""
    html_page.write_page(file, render(scaling))


def render(scaling: dict[str, Any]) -> str:
    """The page as text."""
    worlds, recipe = list(scaling["worlds"].values()), scaling["recipe"]
    facts, packages = scaling["environment"], scaling["environment"]["packages"]
    return html_page.render(
        "scaling.html",
        title=f"{recipe['model']['name']} on 1 to {worlds[-1]['processes']} devices",
        lead=_lead(scaling, worlds),
        tiles=_tiles(scaling, worlds),
        panels=_panels(scaling, worlds),
        legend=[(style.css_variable(color), label) for color, label in _KINDS.values()],
        measured=[(kind, list(map(_row, scaling[kind]))) for kind in _KINDS],
        stops=[
            f"{world['processes']} processes: {world['all_reduce_stopped']}."
            for world in worlds
            if world["all_reduce_stopped"]
        ],
        variants=_variants(worlds),
        varied=[f"{world['processes']:,}" for world in worlds if world["variants"]],
        unit=worlds[0]["plan"]["unit"],
        predictions=list(map(_prediction, scaling["predictions"])),
        has_price=bool(scaling["price"]),
        price=f"{scaling['price']:g}",
        parameters=list(_parameters(scaling["model"])),
        errors=_errors(scaling["model"]["held_back"]),
        assumptions=scaling["model"]["assumptions"],
        shared=[world["processes"] for world in worlds if world["shares_cores"]],
        environment=[
            *((name, _word(facts[name])) for name in _MACHINE if facts.get(name)),
            *packages.items(),
        ],
    )


def _lead(scaling: dict[str, Any], worlds: list[dict[str, Any]]) -> str:
    plan, first = worlds[0]["plan"], worlds[0]
    trained = "all weights" if plan["trainable"] == "all" else "the head"
    machines = max(world["machines"] for world in worlds)
    return (
        f"The training step of phase {plan['phase']} ({trained}, {plan['image_size']} pixels, batch "
        f"{scaling['batch_size']}) on {first['device']}, precision {first['precision']}, "
        f"{machines} machine{'s' * (machines > 1)}; "
        f"{plan['gradient_bytes'] / 2**20:.1f} MiB of gradients per step."
    )


def _tiles(scaling: dict[str, Any], worlds: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """(name, value, remark)."""
    n = worlds[-1]["processes"]
    found = []
    for kind, name in (("strong", "strong scaling"), ("weak", "weak scaling")):
        row = scaling[kind][-1]
        remark = f"{row['images_per_device']} images per device, {speed(row['images_per_second'])}"
        found.append((f"efficiency on {n}, {name}", _percent(row["efficiency"]), remark))
    share = scaling["strong"][-1]["communication_share"]
    found.append(("communication in the step", _percent(share), f"of the time of {n} processes, strong scaling"))
    if rates := [(each["bus_bytes_per_second"], each["bytes"]) for world in worlds for each in world["all_reduce"]]:
        best, size = max(rates)
        found.append(("best bus bandwidth", f"{best / 1e9:.2f} GB/s", f"all-reduce of {_bytes(size)}"))
    points = scaling["model"]["held_back"]["points"]
    if points["count"]:
        remark = f"median of {points['count']} held-back steps; at most {_percent(points['largest'])}"
        found.append(("prediction error", _percent(points["median"]), remark))
    return found


def _panels(scaling: dict[str, Any], worlds: list[dict[str, Any]]) -> list[str]:
    draws: dict[str, Callable[[Axes], None]] = {
        "throughput": lambda axes: _throughput(axes, scaling),
        "efficiency": lambda axes: _efficiency(axes, scaling),
    }
    if any(world["all_reduce"] for world in worlds):
        draws["time of a step"] = lambda axes: _times(axes, scaling)
        draws["all-reduce bus bandwidth"] = lambda axes: _bandwidth(axes, worlds)
    return [style.panel(name, draw) for name, draw in draws.items()]


def _devices(axes: Axes, numbers: Iterable[int]) -> None:
    """A logarithmic axis of devices."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    most = max(numbers)
    axes.set_xscale("log", base=2)
    ticks = [2**power for power in range(0, most.bit_length(), 1 if most < 100 else 2)]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _lines(axes: Axes, scaling: dict[str, Any], value: str) -> None:
    """Measured points and predicted lines of strong and weak scaling."""
    for kind, (color, _) in _KINDS.items():
        predicted = [row[kind] for row in scaling["predictions"] if row[kind]]
        axes.plot(
            [row["processes"] for row in predicted],
            [row[value] for row in predicted],
            color=color,
            linewidth=1.4,
            linestyle=_PREDICTED,
        )
        measured = scaling[kind]
        axes.plot(
            [row["processes"] for row in measured],
            [row[value] for row in measured],
            "o",
            color=color,
            markersize=5,
        )
    _devices(axes, [row["processes"] for row in scaling["predictions"]])


def _throughput(axes: Axes, scaling: dict[str, Any]) -> None:
    style.style_axes(axes, "throughput, images/s", "devices")
    _lines(axes, scaling, "images_per_second")
    first = scaling["strong"][0]
    rate = first["images_per_second"] / first["processes"] / first["efficiency"]
    ends = [row["processes"] for row in scaling["predictions"]]
    axes.plot(ends, [rate * end for end in ends], color=style.MUTED, linewidth=1.0, linestyle=_IDEAL, zorder=1)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(style.thousands())


def _efficiency(axes: Axes, scaling: dict[str, Any]) -> None:
    style.style_axes(axes, "efficiency", "devices")
    _lines(axes, scaling, "efficiency")
    axes.axhline(1, color=style.MUTED, linewidth=1.0, linestyle=_IDEAL, zorder=1)
    axes.axhline(0.9, color=style.WRONG, linewidth=0.8, zorder=1)
    axes.set_ylim(0, 1.15)
    axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 0.9, 1])
    axes.yaxis.set_major_formatter(style.percent())


def _times(axes: Axes, scaling: dict[str, Any]) -> None:
    """Milliseconds of the measured steps: computing, and waiting for communication; one group of bars per kind."""
    style.style_axes(axes, "time of a step, ms", "devices")
    place, ticks, names, most = 0.0, [], [], 0.0
    for kind in _KINDS:
        rows = scaling[kind]
        places = [place + number for number in range(len(rows))]
        waits = [1000 * row["seconds"] * row["communication_share"] for row in rows]
        computes = [1000 * row["seconds"] - wait for row, wait in zip(rows, waits, strict=True)]
        axes.bar(places, computes, color=style.FIRST, width=0.7, label="computing" if not ticks else None)
        axes.bar(
            places,
            waits,
            bottom=computes,
            color=style.SECOND,
            width=0.7,
            label="waiting for gradients" if not ticks else None,
        )
        middle = (places[0] + places[-1]) / 2
        axes.text(middle, -0.19, kind, transform=axes.get_xaxis_transform(), ha="center", fontsize=9, color=style.MUTED)
        ticks, names = ticks + places, names + [str(row["processes"]) for row in rows]
        place, most = places[-1] + 1.8, max([most, *(1000 * row["seconds"] for row in rows)])
    axes.set_xticks(ticks, names)
    axes.set_xlabel("devices", labelpad=14)
    axes.set_ylim(top=1.28 * most)
    axes.legend(frameon=False, fontsize=8.5, labelcolor=style.INK, ncols=2, loc="upper left")


def _bandwidth(axes: Axes, worlds: list[dict[str, Any]]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    style.style_axes(axes, "all-reduce bus bandwidth, GB/s", "bytes of the all-reduce")
    shown = [world for world in worlds if world["all_reduce"]]
    for number, world in enumerate(shown):
        sizes = [each["bytes"] for each in world["all_reduce"]]
        rates = [each["bus_bytes_per_second"] / 1e9 for each in world["all_reduce"]]
        color = style.SERIES[number % len(style.SERIES)]
        axes.plot(
            sizes, rates, "o-", color=color, markersize=3.5, linewidth=1.5, label=f"{world['processes']} processes"
        )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator([2**power for power in range(15, 31, 3)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _bytes(value)))
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if shown:
        axes.axvline(shown[-1]["plan"]["gradient_bytes"], color=style.MUTED, linewidth=0.9, linestyle=_IDEAL, zorder=1)
        axes.legend(frameon=False, fontsize=8.5, labelcolor=style.INK)


def _row(row: dict[str, Any]) -> dict[str, str]:
    """A row of the tables, as text."""
    return {
        "processes": f"{row['processes']:,}",
        "images": f"{row['images_per_device']:,}",
        "batch": f"{row['batch_size']:,}",
        "speed": f"{row['images_per_second']:,.0f}"
        if row["images_per_second"] >= 10
        else f"{row['images_per_second']:.2g}",
        "efficiency": _percent(row["efficiency"]),
        "step": f"{1000 * row['seconds']:,.1f}" if "seconds" in row else "",
        "communication": _percent(row.get("communication_share", 0)),
        "spread": _percent(row.get("spread", 0)),
        "epoch": duration(row["seconds_per_epoch"]),
        "hours": _significant(row["device_hours"]),
        "cost": "-" if row["cost"] is None else _significant(row["cost"]),
    }


def _prediction(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "processes": f"{row['processes']:,}",
        "strong": row["strong"] and _row(row["strong"]),
        "weak": _row(row["weak"]),
        "batch": f"{row['batch_for_90']:,}" if row["batch_for_90"] else "none",
    }


def _variants(worlds: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """(name, for each world the change of the time of a step and the spread of its rounds)."""
    found: dict[str, list[str]] = {}
    for world in worlds:
        for each in world["variants"]:
            change = f"{100 * (each['seconds_ratio'] - 1):+.1f}\u00a0% (spread {_percent(each['spread'])})"
            found.setdefault(each["name"], []).append(change)
    return list(found.items())


def _parameters(model: dict[str, Any]) -> Iterable[tuple[str, str]]:
    yield "time of a step that does not grow with its images", f"{1000 * model['fixed']:.2f} ms"
    yield "time per image", f"{1000 * model['per_image']:.3g} ms"
    yield "host, per step", f"{1000 * model['host']:.2f} ms" if model["host"] else "not told apart from the device"
    yield "slowdown where every device of a machine works", _percent(model["sharing"])
    for name, words in (("machine", "within a machine"), ("network", "between machines")):
        if link := model[name]:
            hops = "the logarithm of the devices" if link["hops"] == "tree" else "the number of devices"
            yield (
                f"link {words}",
                f"{1e6 * link['latency']:,.0f} µs per message, times {hops}; {link['bandwidth'] / 1e9:.2f} GB/s",
            )
    if model["machine"] or model["network"]:
        step = f"the last {model['micro_batch']} images of a step" if model["micro_batch"] else "a step"
        yield f"share of {step} behind which communication hides", _percent(model["overlap"])
        yield "communication inside a step, compared with alone", f"{model['slowdown']:.2f} times"


def _errors(held_back: dict[str, Any]) -> list[str]:
    """Sentences on the errors of the prediction."""
    points, world = held_back["points"], held_back["largest_world"]
    found = []
    if points["count"]:
        found.append(
            f"Each of the {points['count']} measured steps was predicted by a model of the others: the median error is "
            f"{_percent(points['median'])}, the largest {_percent(points['largest'])}."
        )
    if world:
        found.append(
            f"A model of the smaller numbers predicted the steps of {world['processes']} processes: the median error "
            f"is {_percent(world['median'])}, the largest {_percent(world['largest'])}."
        )
    else:
        found.append("No number of processes was held back: that takes three of them, two above one.")
    return found


def _percent(share: float) -> str:
    """54.2 %; `per_class.percent` shows more digits near 0 and 1, and above."""
    return f"{100 * share:.1f}\u00a0%"


def _significant(value: float) -> str:
    """Three significant digits, and all of a large number's."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _bytes(size: float) -> str:
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size / unit:g} {name}"
    return f"{size:g} B"


def _word(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
