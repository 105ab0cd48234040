"""Writes the tables of docs/metrics.md from the catalogue in the code.

python scripts/metrics_reference.py
"""

from __future__ import annotations

from pathlib import Path

from meshlib.observe.catalogue import CATALOGUE, LABELS, Kind, Metric

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"
BEGIN = "<!-- from here on: python scripts/metrics_reference.py -->\n"
END = "<!-- up to here -->\n"
_KINDS = {
    Kind.COUNTER: "counter, sum",
    Kind.SUM: "gauge, sum",
    Kind.MAX: "gauge, highest",
}


def made() -> str:
    """Everything between the two marks."""
    always = [metric for metric in CATALOGUE if not metric.per_endpoint]
    asked = [metric for metric in CATALOGUE if metric.per_endpoint]
    labels = "".join(
        f"| `{name}` | `{label.attribute}` | {label.help} |\n" for name, label in sorted(LABELS.items())
    )
    return (
        f"## All metrics\n\n{_table(always)}\nWith `endpoints=True`, too:\n\n{_table(asked)}\n"
        f"## All labels\n\n| Prometheus | OpenTelemetry | Values |\n|---|---|---|\n{labels}"
    )


def _table(metrics: list[Metric]) -> str:
    rows = "".join(
        f"| `{each.prometheus}`<br>`{each.opentelemetry}` | {_KINDS[each.kind]} | "
        f"{', '.join(f'`{label}`' for label in each.labels)} | {each.help} |\n"
        for each in metrics
    )
    return f"| Prometheus, OpenTelemetry | Kind, of several processes | Labels | Meaning |\n|---|---|---|---|\n{rows}"


def page(text: str) -> str:
    """The page with its tables made anew."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + made() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
