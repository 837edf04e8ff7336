"""How each tool keeps a month: a snapshot of the tree and one of the cluster each day in one
repository, forgetting some, and giving their space back."""

import json
import os
import shutil

from . import tools
from .machine import Failed, run


class Monthly:
    """What the month asks of a tool, on top of what bench/compare knows of it."""

    def begin(self, tree, cluster, small, user):
        """An empty repository for the three."""
        raise NotImplementedError

    def keep(self, what, source, name):
        """Takes a snapshot of "tree", "cluster" or "small"; what it took, and its id."""
        raise NotImplementedError

    def bring(self, what, source, snapshot, target):
        raise NotImplementedError

    def forget(self, snapshots):
        """Forgets snapshots and gives their space back; what that took."""
        raise NotImplementedError

    def found(self, source, target):
        """Where the content of the source lies in what was restored."""
        return target


def together(runs):
    """Several programs as one: their time, and the most memory that one of them took."""
    total = runs[0]
    for one in runs[1:]:
        total.seconds += one.seconds
        total.rss = max(total.rss, one.rss)
        total.output += one.output
    return total


class Restic(tools.Restic, Monthly):
    def begin(self, tree, cluster, small, user):
        self.fresh(tree, user)

    def keep(self, what, source, name):
        ran = self.run(self.program(), "backup", "--json", "--tag", what, ".", cwd=source)
        for line in reversed(ran.output.splitlines()):
            if '"summary"' in line:
                return ran, json.loads(line)["snapshot_id"]
        raise Failed("restic named no snapshot")

    def bring(self, what, source, snapshot, target):
        return self.run(self.program(), "restore", snapshot, "--quiet", "--target", target)

    def forget(self, snapshots):
        return together([
            self.run(self.program(), "forget", "--quiet", *snapshots),
            self.run(self.program(), "prune", "--quiet"),
        ])


class Rustic(tools.Rustic, Monthly):
    def begin(self, tree, cluster, small, user):
        self.fresh(tree, user)

    def keep(self, what, source, name):
        ran = self.run(self.program(), "--no-progress", "--log-level", "error", "backup", "--json", "--as-path", "/data", source)
        return ran, json.loads(ran.output[ran.output.index("{") :])["id"]

    def bring(self, what, source, snapshot, target):
        return self.run(self.program(), "--no-progress", "restore", f"{snapshot}:/data", target)

    def forget(self, snapshots):
        return together([
            self.run(self.program(), "--no-progress", "forget", *snapshots),
            self.run(self.program(), "--no-progress", "prune", "--instant-delete"),
        ])


class Borg(tools.Borg, Monthly):
    def begin(self, tree, cluster, small, user):
        self.fresh(tree, user)

    def keep(self, what, source, name):
        command = [self.program(), "create", "--compression", "zstd,3", f"::{name}", "."]
        return self.run(*command, cwd=source, allowed=(0, 1)), name

    def bring(self, what, source, snapshot, target):
        return self.run(self.program(), "extract", f"::{snapshot}", cwd=target)

    def forget(self, snapshots):
        return together([
            self.run(self.program(), "delete", "::", *snapshots),
            self.run(self.program(), "compact"),
        ])


class Backstay(tools.Backstay, Monthly):
    def begin(self, tree, cluster, small, user):
        self.fresh(cluster, user)
        with open(self.config, "a", encoding="utf-8") as file:
            for name, path in (("tree", tree.path), ("small", small)):
                file.write(f'\n[sources.{name}]\nkind = "files"\npaths = ["{path}"]\n')
        self.cluster = cluster

    def keep(self, what, source, name):
        name = "bench" if what == "cluster" else what
        if what == "cluster":
            self.archive(self.cluster)
        try:
            # The answer alone: the warnings of a backup stand beside it.
            ran = self.run(*self.words, "--quiet", "--json", "backup", name)
        finally:
            if what == "cluster":
                self.cluster.archive_with("true")
        answer, _ = json.JSONDecoder().raw_decode(ran.output, ran.output.index("{\n"))
        return ran, answer["backups"][0]["snapshot"]["id"]

    def bring(self, what, source, snapshot, target):
        only = ["--immediate"] if what == "cluster" else []
        return self.run(*self.words, "restore", snapshot, "--to", target, *only)

    def found(self, source, target):
        inside = os.path.join(target, source.lstrip("/"))
        return inside if os.path.isdir(inside) else target

    def stored(self):
        # All of it: the log that its cluster snapshots need lies in the archive, where that of the
        # others is among the files they copied.
        return tools.stored(self.repository)

    def forget(self, snapshots):
        return together([
            self.run(*self.words, "forget", *snapshots),
            self.run(*self.words, "maintenance"),
        ])


ALL = [Backstay, Restic, Rustic, Borg]


def set_aside(tool):
    """Keeps a copy of the repository and of what the tool remembers of it, and gives a function that
    puts both back: some tools refuse a repository that is older than their memory of it."""
    copy = tool.home + ".aside"
    shutil.rmtree(copy, ignore_errors=True)
    run(["cp", "-a", "--reflink=auto", tool.home, copy])

    def put_back():
        shutil.rmtree(tool.home)
        os.rename(copy, tool.home)

    return put_back
