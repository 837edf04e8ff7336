"""The table: medians, ratios, and whether the goals are reached."""

import statistics

UNITS = {
    "s": lambda value: f"{value:.2f} s" if value < 10 else f"{value:.1f} s",
    "ms": lambda value: f"{value * 1000:.1f} ms",
    "MB": lambda value: f"{value / 1e6:,.0f} MB",
}

# The rows: name, unit, goals. A goal is (factor, of whom, which row); of whom None: an absolute
# limit in the unit's own base (seconds, bytes).
ROWS = [
    ("cluster: full backup", "s", [(0.5, "pgbackrest"), (1.0, "tar+zstd")]),
    ("cluster: restore", "s", [(0.6, "the best peer")]),
    ("cluster: stored", "MB", []),
    ("cluster: memory of the backup", "MB", [(256e6, None)]),
    ("cluster: incremental, 1 % changed", "s", []),
    ("cluster: stored by the incremental", "MB", [(1.3, "changed pages, zstd -3")]),
    ("wal push of one segment", "ms", [(0.5, "pgbackrest")]),
    ("files: first backup", "s", [(0.5, "restic")]),
    ("files: second backup, nothing changed", "s", [(0.25, "rustic")]),
    ("files: restore", "s", [(0.5, "restic")]),
    ("files: stored", "MB", []),
    ("files: memory of the backup", "MB", [(256e6, None)]),
]

US = "backstay"
# What is no backup tool is no peer in "the best peer".
NO_PEER = {"tar+zstd", "changed pages, zstd -3", "backstay, wal"}


def write_section(path, lines):
    """Writes a section of a page, its title being the first line ("# …"), in the place of the one
    that has this title; the others stay."""
    title, sections = lines[0], []
    try:
        with open(path, encoding="utf-8") as file:
            for line in file.read().split("\n"):
                if line.startswith("# ") or not sections:
                    sections.append([])
                sections[-1].append(line)
    except FileNotFoundError:
        pass
    at = next((number for number, old in enumerate(sections) if old[0] == title), len(sections))
    sections[at : at + 1] = [lines]
    text = "\n\n".join("\n".join(section).strip("\n") for section in sections) + "\n"
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


class Results:
    def __init__(self, rows=None):
        self.rows = ROWS if rows is None else rows
        self.values = {}  # (row, tool) -> measurements
        self.wrong = []  # sentences

    def add(self, row, tool, value):
        assert any(row == name for name, _, _ in self.rows), row
        self.values.setdefault((row, tool), []).append(value)

    def fail(self, tool, what, why):
        self.wrong.append(f"{tool}: {what}: {why}")

    def median(self, row, tool):
        values = self.values.get((row, tool))
        return statistics.median(values) if values else None

    def tools(self):
        names = []
        for _, tool in self.values:
            if tool not in names:
                names.append(tool)
        names.sort(key=lambda name: name != US)
        return names

    def reference(self, row, whom):
        """The name and the median that a goal compares with."""
        if whom != "the best peer":
            return whom, self.median(row, whom)
        peers = [tool for tool in self.tools() if tool != US and tool not in NO_PEER]
        measured = [(self.median(row, tool), tool) for tool in peers if self.median(row, tool)]
        return (min(measured)[1], min(measured)[0]) if measured else (whom, None)

    def verdicts(self):
        """One sentence for each goal that can be judged: (row, reached, sentence)."""
        for row, unit, goals in self.rows:
            ours = self.median(row, US)
            if ours is None:
                continue
            for factor, whom in goals:
                if whom is None:
                    reached = ours <= factor
                    yield row, reached, f"{UNITS[unit](ours)}, at most {UNITS[unit](factor)}"
                    continue
                name, theirs = self.reference(row, whom)
                if theirs:
                    ratio = ours / theirs
                    yield row, ratio <= factor, f"{ratio:.2f} × {name}, at most {factor:g} ×"

    def table(self):
        tools = [tool for tool in self.tools() if tool != "changed pages, zstd -3"]
        lines = ["| | " + " | ".join(tools) + " | goal |", "|---" * (len(tools) + 2) + "|"]
        verdicts = {}
        for row, reached, sentence in self.verdicts():
            verdicts.setdefault(row, []).append(f"{'reached' if reached else '**missed**'}: {sentence}")
        for row, unit, _ in self.rows:
            if not any(self.median(row, tool) is not None for tool in tools):
                continue
            cells = []
            for tool in tools:
                median = self.median(row, tool)
                cell = "" if median is None else UNITS[unit](median)
                ours = self.median(row, US)
                if median and ours and tool != US:
                    cell += f" ({ours / median:.2f})"
                cells.append(cell)
            lines.append(f"| {row} | " + " | ".join(cells) + " | " + "; ".join(verdicts.get(row, [])) + " |")
        return "\n".join(lines)

    def spread(self):
        """The fastest and slowest of each row that was measured more than once."""
        lines = []
        for row, unit, _ in self.rows:
            parts = []
            for tool in self.tools():
                values = self.values.get((row, tool), [])
                if len(values) > 1:
                    parts.append(f"{tool} {UNITS[unit](min(values))} to {UNITS[unit](max(values))}")
            if parts:
                lines.append(f"- {row}: " + ", ".join(parts))
        return "\n".join(lines)
