"""Backstay and its peers: how each is told to do the same work.

A tool works in a folder of its own. `fresh` makes an empty repository there and is not measured;
everything else is. Encryption is on wherever there is any, compression is zstd 3 (restic's own
choice in restic), and two threads work (all cores where a tool cannot be told).
"""

import os
import shutil
import shlex

from .machine import Failed, own, run, stored

PASSWORD = "side by side"


class Tool:
    name = ""
    cluster = True  # whether it takes the cluster
    tree = True  # whether it takes the tree
    push = False  # whether it takes single WAL segments
    incremental = True  # whether its second backup finds what is unchanged

    def __init__(self, work, options):
        self.home = os.path.join(work, "tools-at-work", self.name)
        self.repository = os.path.join(self.home, "repository")
        self.options = options
        self.user = None
        self.env = {}

    def program(self):
        """The path of the program, or None where it is not to be had."""
        return shutil.which(self.name)

    def version(self):
        return run([self.program(), "--version"]).output.split("\n")[0]

    def empty(self, user):
        shutil.rmtree(self.home, ignore_errors=True)
        os.makedirs(self.repository)
        own(self.home, user)
        self.user = user

    def run(self, *command, cwd=None, **settings):
        if len(command) == 1:
            command = command[0]
        return run(command, user=self.user, env=self.env, cwd=cwd or self.home, **settings)

    def fresh(self, source, user):
        raise NotImplementedError

    def backup(self, source, kind="full"):
        raise NotImplementedError

    def restore(self, source, target):
        raise NotImplementedError

    def stored(self):
        return stored(self.repository)


class Tar(Tool):
    name = "tar+zstd"
    incremental = False

    def program(self):
        return shutil.which("zstd") and shutil.which("tar")

    def version(self):
        return run(["tar", "--version"]).output.split("\n")[0]

    def fresh(self, source, user):
        self.empty(user)

    def backup(self, source, kind="full"):
        into = shlex.quote(os.path.join(self.repository, "archive.tar.zst"))
        # posix: the older format knows no fractions of a second.
        # 1: a file changed or vanished while it was read, as files of a live server do.
        return self.run(f"{{ tar -C {shlex.quote(source.path)} --format=posix -cf - . || [ $? = 1 ]; }} | zstd -3 -T2 -q -f -o {into}")

    def restore(self, source, target):
        archive = shlex.quote(os.path.join(self.repository, "archive.tar.zst"))
        return self.run(f"zstd -d -q -c {archive} | tar -xpf - -C {shlex.quote(target)}")


class Restic(Tool):
    name = "restic"

    def version(self):
        return run([self.program(), "version"]).output.split("\n")[0]

    def fresh(self, source, user):
        self.empty(user)
        cache = os.path.join(self.home, "cache")
        self.env = {"RESTIC_PASSWORD": PASSWORD, "RESTIC_REPOSITORY": self.repository, "RESTIC_CACHE_DIR": cache}
        self.run(self.program(), "init", "--repository-version", "2")

    def backup(self, source, kind="full"):
        return self.run(self.program(), "backup", "--quiet", ".", cwd=source.path)

    def restore(self, source, target):
        return self.run(self.program(), "restore", "latest", "--quiet", "--target", target)


class Rustic(Tool):
    name = "rustic"

    def program(self):
        built = os.path.join(self.options.work, "tools", "bin", "rustic")
        return built if os.path.exists(built) else shutil.which("rustic")

    def fresh(self, source, user):
        self.empty(user)
        cache = os.path.join(self.home, "cache")
        self.env = {"RUSTIC_PASSWORD": PASSWORD, "RUSTIC_REPOSITORY": self.repository, "RUSTIC_CACHE_DIR": cache}
        self.run(self.program(), "--no-progress", "init", "--set-compression", "3")

    def backup(self, source, kind="full"):
        return self.run(self.program(), "--no-progress", "backup", "--as-path", "/data", source.path)

    def restore(self, source, target):
        return self.run(self.program(), "--no-progress", "restore", "latest:/data", target)


class Borg(Tool):
    name = "borg"

    def fresh(self, source, user):
        self.empty(user)
        self.number = 0
        self.env = {"BORG_PASSPHRASE": PASSWORD, "BORG_BASE_DIR": self.home, "BORG_REPO": self.repository}
        self.run(self.program(), "init", "--encryption", "repokey-blake2")

    def backup(self, source, kind="full"):
        self.number += 1
        command = [self.program(), "create", "--compression", "zstd,3", f"::backup-{self.number}", "."]
        # 1 is a warning: a file changed while it was read.
        return self.run(*command, cwd=source.path, allowed=(0, 1))

    def restore(self, source, target):
        return self.run(self.program(), "extract", f"::backup-{self.number}", cwd=target)


class PgBackRest(Tool):
    name = "pgbackrest"
    tree = False
    push = True

    def program(self):
        return self.options.pgbackrest or shutil.which("pgbackrest")

    def version(self):
        return run([self.program(), "version"]).output.strip()

    def fresh(self, source, user):
        self.empty(user)
        config = os.path.join(self.home, "pgbackrest.conf")
        with open(config, "w", encoding="utf-8") as file:
            file.write(
                "[global]\n"
                f"repo1-path={self.repository}\nrepo1-retention-full=10\n"
                f"repo1-cipher-type=aes-256-cbc\nrepo1-cipher-pass={PASSWORD}\n"
                "compress-type=zst\ncompress-level=3\nprocess-max=2\nstart-fast=y\n"
                f"lock-path={self.home}/lock\nlog-path={self.home}/log\nspool-path={self.home}/spool\n"
                "log-level-console=error\nlog-level-file=off\n"
                "[bench]\n"
                f"pg1-path={source.data}\npg1-socket-path={source.socket}\npg1-port={source.port}\n"
                "pg1-user=postgres\n"
            )
        own(self.home, user)
        self.words = [self.program(), f"--config={config}", "--stanza=bench"]
        self.run(*self.words, "stanza-create")
        self.archive(source)

    def archive(self, source):
        """From now on the server's WAL goes to this tool."""
        source.archive_with(f'exec {shlex.join(self.words)} archive-push "$1"')

    def backup(self, source, kind="full"):
        return self.run(*self.words, f"--type={'full' if kind == 'full' else 'incr'}", "backup")

    def restore(self, source, target):
        return self.run(*self.words, f"--pg1-path={target}", "restore")

    def push_segment(self, source, segment):
        return self.run(*self.words, "archive-push", segment, cwd=source.data)

    def stored(self):
        return stored(os.path.join(self.repository, "backup"))


class Backstay(Tool):
    name = "backstay"
    push = True

    def program(self):
        return self.options.backstay

    def fresh(self, source, user):
        self.empty(user)
        self.config = os.path.join(self.home, "backstay.toml")
        if hasattr(source, "data"):
            what = (
                'kind = "postgres"\n'
                f'connection = "host={source.socket} port={source.port} user=postgres dbname=postgres"\n'
                f'data-directory = "{source.data}"\n'
            )
        else:
            what = f'kind = "files"\npaths = ["{source.path}"]\n'
        with open(self.config, "w", encoding="utf-8") as file:
            file.write(
                f'workers = 2\ncache = "{self.home}/cache"\n\n'
                f'[repositories.main]\nurl = "file://{self.repository}"\nkey-file = "{self.home}/main.key"\n\n'
                f"[sources.bench]\n{what}"
            )
        own(self.home, user)
        self.words = [self.program(), "--config", self.config]
        self.run(*self.words, "init")
        if hasattr(source, "data"):
            self.archive(source)

    def archive(self, source):
        source.archive_with(f'exec {shlex.join(self.words)} wal push "$1"')

    def backup(self, source, kind="full"):
        return self.run(*self.words, "backup", "bench", "--type", kind)

    def restore(self, source, target):
        return self.run(*self.words, "restore", "bench", "--to", target)

    def restored_tree(self, source, target):
        """Where the content of the source's path lies in what was restored."""
        inside = os.path.join(target, source.path.lstrip("/"))
        return inside if os.path.isdir(inside) else target

    def stored(self):
        # As with pgBackRest: the archive grows with the server's work, not with backups.
        return stored(self.repository) - stored(os.path.join(self.repository, "wal"))

    def push_segment(self, source, segment):
        return self.run(*self.words, "wal", "push", segment, cwd=source.data)

    def version(self):
        return run([self.program(), "--version"]).output.split("\n")[0]


ALL = [Backstay, PgBackRest, Restic, Rustic, Borg, Tar]


def choose(work, options):
    """The tools that were asked for and can be had, and a word on those that cannot."""
    chosen, without = [], {}
    for kind in ALL:
        tool = kind(work, options)
        if options.tools and tool.name not in options.tools:
            continue
        try:
            if not tool.program():
                without[tool.name] = "not installed"
                continue
            tool.version()
        except (Failed, OSError) as failure:
            without[tool.name] = str(failure).strip().split("\n")[0]
            continue
        chosen.append(tool)
    return chosen, without
