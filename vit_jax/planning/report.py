"""A plan as text."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

GIB = 2**30
MOST = 8  # lines of a list


def text(plan: dict[str, Any]) -> str:
    """The whole report."""
    sections = (head, memory, peak, replicated, flops, times, sent, speed, left_out)
    return "\n".join(line for section in sections for line in section(plan))


def head(plan: dict[str, Any]) -> Iterator[str]:
    """What it is, and whether it fits."""
    total, available = (plan["hbm_per_device"][key] for key in ("total", "available"))
    verdict = "fits" if plan["fits"] else "DOES NOT FIT"
    yield (
        f"{plan['topology']}: {plan['chips']} chips, {plan['devices']} devices, "
        f"{plan['layout']}; {plan['parameters'] / 1e6:,.1f} M parameters, "
        f"batch {plan['batch_size']:,}"
    )
    yield (
        f"{verdict}: {total / GIB:.2f} GiB of {available / GIB:.2f} GiB a device "
        f"({total / available:.0%})"
    )
    if plan["refused"]:
        yield f"The compiler: {plan['refused'].splitlines()[0]}"
    for line in plan["remedies"] if "remedies" in plan else []:
        yield f"  {line}"


def memory(plan: dict[str, Any]) -> Iterator[str]:
    """HBM by what it holds."""
    hbm = plan["hbm_per_device"]
    yield "\nHBM per device, GiB"
    for name, size in hbm.items():
        if name not in ("available", "total") and size >= 0.005 * GIB:
            yield f"  {name:<22} {size / GIB:8.2f} {size / hbm['total']:6.0%}"
    yield f"  {'total':<22} {hbm['total'] / GIB:8.2f}"


def peak(plan: dict[str, Any]) -> Iterator[str]:
    """The largest of what is alive at the peak."""
    yield "\nLargest temporaries alive at the peak, GiB"
    for buffer in plan["temporaries_at_peak"][:MOST]:
        where = place(buffer["op_name"]) or "(the compiler's own)"
        yield f"  {buffer['size'] / GIB:6.2f}  {buffer['shape']:<26} {where}"
    if rest := plan["temporaries_at_peak"][MOST:]:
        size = sum(buffer["size"] for buffer in rest)
        yield f"  {size / GIB:6.2f}  {len(rest)} others"


def replicated(plan: dict[str, Any]) -> Iterator[str]:
    """Arrays that each device holds whole."""
    whole = plan["replicated"]
    size = sum(leaf["bytes"] for leaf in whole)
    yield (
        f"\nHeld whole by every device: {len(whole)} arrays of the state, "
        f"{size / GIB:.3f} GiB; the largest: "
        + (", ".join(leaf["name"] for leaf in whole[:3]) or "none")
    )


def flops(plan: dict[str, Any]) -> Iterator[str]:
    """Of the model, and with what is computed twice."""
    counted = plan["flops_per_step"]
    yield (
        f"\nFLOPs of a step: {counted['model']:.4g} of the model, "
        f"{counted['hardware']:.4g} computed ({counted['recompute']:+.1%})"
    )


def times(plan: dict[str, Any]) -> Iterator[str]:
    """The step by part of the model."""
    time = plan["time"]
    if time is None:
        yield "\nNo times: they need a full compilation, without --fast"
        return
    total = sum(time["parts"].values())
    yield "\nTime of a step on a device without collectives, ms"
    for part, ms in sorted(time["parts"].items(), key=lambda item: -item[1]):
        yield f"  {part:<22} {ms:8.2f} {ms / total:6.0%}"
    yield f"  {'total':<22} {total:8.2f}"
    yield (
        f"  (bundles alone {time['bundles_ms']:.1f}, HBM traffic alone "
        f"{time['traffic_ms']:.1f}, prefetches taken as hidden "
        f"{time['prefetch_ms']:.1f})"
    )
    yield "\nSlowest operations, ms"
    for ms, count, op_name, shape in time["slowest"][:MOST]:
        yield f"  {ms:7.2f}  {count:>4} x {shape:<26} {place(op_name)}"


def sent(plan: dict[str, Any]) -> Iterator[str]:
    """The collectives."""
    yield "\nCollectives of a step"
    rows = [("kind", "dtype", "devices", "count", "GB", "ms of the links", "")]
    for one in plan["collectives"]:
        rows.append(
            (
                one["kind"],
                one["dtype"],
                str(one["group"]),
                str(one["count"]),
                f"{one['bytes'] / 1e9:.3f}",
                f"{1e3 * one['seconds']:.2f}",
                "between slices" if one["crosses_slices"] else "",
            )
        )
    yield from (table(rows) if len(rows) > 1 else ["  none"])


def speed(plan: dict[str, Any]) -> Iterator[str]:
    """What the step's time comes to."""
    if plan["estimate"] is None:
        return
    yield f"\nEstimate for {plan['total_steps']:,} steps"
    rows = [("collectives", "ms a step", "MFU", "images/s", "days", "chip-hours", "$")]
    for name, value in plan["estimate"].items():
        price = value["price"]
        rows.append(
            (
                f"all {name}",
                f"{value['step_ms']:.1f}",
                f"{value['mfu']:.1%}",
                f"{value['images_per_second']:,.0f}",
                f"{value['days']:.2f}",
                f"{value['chip_hours']:,.0f}",
                "--price=?" if price is None else f"{price:,.0f}",
            )
        )
    yield from table(rows)


def left_out(plan: dict[str, Any]) -> Iterator[str]:
    """What no figure contains."""
    yield "\nNot modelled"
    yield from (f"  {line}" for line in plan["not_modelled"])


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines with columns of equal width; the first is on the left, others right.

    >>> list(table([("a", "n"), ("bc", "10")]))
    ['  a    n', '  bc  10']
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [
            cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)
        ]
        yield f"  {'  '.join(cells)}".rstrip()


def place(op_name: str) -> str:
    """A name of the traced program, shortened to where it is in the model.

    >>> place("jit(train_step)/transpose(jvp(VisionTransformer))/Transformer/"
    ...       "Transformer._scan/while/body/closed_call/encoderblock/MlpBlock_0/mul")
    'backward encoderblock/MlpBlock_0/mul'
    """
    backward = "transpose(" in op_name
    recomputed = "rematted_computation" in op_name
    name = re.sub(r"jit\(train_step\)/|(transpose\()?jvp\([^/]*\)+/", "", op_name)
    name = re.sub(r"\w+\._\w+/|\bTransformer/|while/body/|closed_call/", "", name)
    name = re.sub(r"checkpoint/|rematted_computation/", "", name)
    name = name.replace("MultiHeadDotProductAttention_", "Attention_")
    return f"{'recomputed ' if recomputed else 'backward ' if backward else ''}{name}"


def ranking(plans: Sequence[dict[str, Any]]) -> str:
    """What a search found, the best first."""
    if not plans:
        return "Nothing that was tried fits: lower the batch size, or take more chips"
    rows = [("GiB", "ms a step", "ms of links", "MFU", "arrangement")]
    for plan in plans:
        links = sum(one["seconds"] for one in plan["collectives"])
        estimate = plan["estimate"]["hidden"] if plan["estimate"] else None
        rows.append(
            (
                f"{plan['hbm_per_device']['total'] / GIB:.2f}",
                f"{estimate['step_ms']:.1f}" if estimate else "-",
                f"{1e3 * links:.1f}",
                f"{estimate['mfu']:.1%}" if estimate else "-",
                " ".join(plan["command"]),
            )
        )
    order = "least time first" if plans[0]["estimate"] else "least memory first"
    return "\n".join([f"{plans[0]['topology']}, {order}:", *table(rows)])


def local_text(plan: dict[str, Any]) -> str:
    """What was measured on this machine."""
    memory, flops = plan["bytes_per_device"], plan["flops_per_step"]
    lines = [
        f"Measured on this machine, {plan['devices']} ({plan['layout']}), batch "
        f"{plan['batch_size']:,}",
        f"  {plan['step_ms']:.1f} ms a step, {plan['images_per_second']:,.1f} "
        f"images/s, {plan['share_of_matmul_rate']:.0%} of this machine's rate for "
        "matrix products",
        f"  {plan['days']:.2f} days for {plan['total_steps']:,} steps"
        + ("" if plan["price"] is None else f", ${plan['price']:,.2f}"),
        f"  {sum(memory.values()) / GIB:.2f} GiB a device: "
        + ", ".join(f"{name} {size / GIB:.2f}" for name, size in memory.items()),
        f"  FLOPs of a step: {flops['model']:.4g} of the model, "
        f"{flops['hardware']:.4g} computed",
        "Not modelled",
        *(f"  {line}" for line in plan["not_modelled"]),
    ]
    return "\n".join(lines)
