"""The data sets: a PostgreSQL cluster and a tree of files; and whether a copy of them is right."""

import contextlib
import filecmp
import glob
import os
import re
import shutil
import stat
import subprocess
import threading
import time

from .machine import Failed, own, run, say

# scale of pgbench, rows of the second table, files of the tree at most (None: all there are)
SIZES = {
    "small": (8, 300_000, 8_000),
    "full": (150, 6_000_000, None),
}

# What a server writes while it runs, and what a restore is meant to change.
VOLATILE = re.compile(
    r"^(pg_wal|pg_stat|pg_stat_tmp|pg_notify|pg_subtrans|pg_replslot|pg_logical|pg_dynshmem|"
    r"pg_serial|pg_snapshots|log)(/|$)"
    r"|^(postmaster\.(pid|opts)|backup_label(\.old)?|tablespace_map(\.old)?|backup_manifest|"
    r"postgresql\.auto\.conf|(recovery|standby)\.signal|current_logfiles|global/pg_control)$"
    r"|(^|/)(pg_internal\.init|pgsql_tmp)$|^\.backstay"
)


class Cluster:
    """A PostgreSQL server on a socket of its own, idle while it is measured.

    Its archive_command hands every segment to the program whose turn it is: the one whose command
    line stands in the file `archiver`.
    """

    def __init__(self, work, user, size, numbers=None):
        """`numbers`: the scale of pgbench and the rows of the second table, where `size` is none of SIZES."""
        self.numbers = numbers or SIZES[size][:2]
        self.user = user
        self.root = os.path.join(work, f"cluster-{size}")
        self.data = os.path.join(self.root, "data")
        self.socket = os.path.join(self.root, "s")
        self.port = 54998
        self.segments = os.path.join(self.root, "segments")
        self.archiver = os.path.join(self.root, "archiver")
        self.size = size
        self.bin = self.find()
        self.server = None
        if len(self.socket) > 80:
            raise Failed(f"{self.socket} is too long a path for a socket; use a shorter --work")

    @staticmethod
    def find():
        """The newest installed server that has pgbench."""
        found = glob.glob("/usr/lib/postgresql/*/bin/pgbench") + glob.glob("/usr/pgsql-*/bin/pgbench")
        found = [os.path.dirname(path) for path in found]
        found = [path for path in found if os.path.exists(os.path.join(path, "postgres"))]
        if not found:
            raise Failed("no PostgreSQL server with pgbench is installed")
        return max(found, key=lambda path: int(re.search(r"(\d+)/bin", path)[1]))

    def version(self):
        return run([f"{self.bin}/postgres", "--version"]).output.strip().removeprefix("postgres ").replace("(PostgreSQL)", "PostgreSQL", 1)

    def program(self, name, *arguments, limit=3600, **settings):
        command = [f"{self.bin}/{name}", *arguments]
        env = {"PGHOST": self.socket, "PGPORT": str(self.port), "PGUSER": "postgres", "PGDATABASE": "postgres"}
        return run(command, user=self.user, env=env, cwd=self.root, limit=limit, **settings)

    def sql(self, statements):
        return self.program("psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", statements).output.strip()

    def archive_with(self, line):
        """From now on segments go to this shell command, `$1` being the segment's path."""
        with open(self.archiver + ".new", "w", encoding="utf-8") as file:
            file.write(line + "\n")
        os.chmod(self.archiver + ".new", 0o644)
        os.rename(self.archiver + ".new", self.archiver)

    def prepare(self):
        """Makes the cluster unless it is there, and starts it."""
        if os.path.exists(os.path.join(self.data, "postmaster.pid")):
            # Of a run that was killed.
            self.program("pg_ctl", "stop", "-D", self.data, "-m", "immediate", "-w", "-s", allowed=(0, 1))
        complete = os.path.join(self.root, "complete")
        if not os.path.exists(complete):
            shutil.rmtree(self.root, ignore_errors=True)
            self.make()
            self.stop()
            with open(complete, "w", encoding="utf-8"):
                pass
        self.start()

    def make(self):
        scale, rows = self.numbers
        say(f"making the cluster: pgbench scale {scale} and a table of {rows:,} rows")
        for folder in (self.root, self.data, self.socket, self.segments):
            os.makedirs(folder)
        own(self.root, self.user)
        self.program(
            "initdb", "-D", self.data, "-U", "postgres", "--auth=trust", "--data-checksums",
            "--encoding=UTF8", "--locale=C", "--no-sync",
        )
        settings = {
            "unix_socket_directories": self.socket,
            "port": self.port,
            "listen_addresses": "",
            "shared_buffers": "512MB",
            "maintenance_work_mem": "256MB",
            "wal_level": "replica",
            "max_wal_size": "512MB",
            "min_wal_size": "32MB",
            "wal_recycle": "off",
            "archive_mode": "on",
            # pgBackRest insists on its own name in there; the script ignores these words.
            "archive_command": f"exec sh {self.archiver} %p pgbackrest or backstay",
            # Nothing may change the files between two of those who read them.
            "autovacuum": "off",
            "checkpoint_timeout": "1d",
            "fsync": "off",
        }
        with open(os.path.join(self.data, "postgresql.conf"), "a", encoding="utf-8") as conf:
            for name, value in settings.items():
                conf.write(f"{name} = '{value}'\n")
        self.start()
        # Segments of real work, for the row that pushes them one by one.
        self.archive_with(
            f'[ "$(ls {self.segments} | wc -l)" -ge 40 ] || case "$1" in *.*) ;; *) cp "$1" {self.segments}/ ;; esac'
        )
        self.program("pgbench", "-i", "-q", "-s", str(scale))
        self.sql(
            "create table orders as select n as id, (n::bigint * 7919 % 100003)::int as customer, "
            "timestamptz '2024-01-01' + n * interval '7 seconds' as placed, "
            "(random() * 100000)::numeric(9, 2) as total, md5(n::text) as reference, "
            f"'order ' || n || ' of the day' as note from generate_series(1, {rows}) n"
        )
        self.sql("alter table orders add primary key (id)")
        self.program("pgbench", "-c", "2", "-j", "2", "-t", "2000" if scale < 100 else "10000")
        self.sql("vacuum freeze analyze")
        self.sql("checkpoint")

    def start(self):
        self.archive_with("true")
        log = os.path.join(self.root, "log")
        self.program("pg_ctl", "start", "-D", self.data, "-l", log, "-w", "-t", "120", "-s")
        self.server = True

    def stop(self):
        if self.server:
            self.server = None
            self.archive_with("true")
            self.program("pg_ctl", "stop", "-D", self.data, "-m", "fast", "-w", "-t", "120", "-s")

    def settle(self):
        """Brings everything to disk, so that nobody pays for what another one wrote."""
        self.sql("checkpoint")
        os.sync()

    @contextlib.contextmanager
    def put_aside(self):
        """Keeps a copy of the data while they are changed, gives its path, and puts it back."""
        before = os.path.join(self.root, "before")
        complete = os.path.join(self.root, "complete")
        self.stop()
        # Ended in between, the next run makes the data anew.
        os.remove(complete)
        run(["cp", "-a", "--reflink=auto", self.data, before])
        self.start()
        yield before
        self.stop()
        shutil.rmtree(self.data)
        os.rename(before, self.data)
        with open(complete, "w", encoding="utf-8"):
            pass

    def change_one_percent(self):
        """Changes one row in each of about 1 % of the pages of the two large tables."""
        for table, key in (("pgbench_accounts", "abalance"), ("orders", "customer")):
            self.sql(
                f"update {table} t set {key} = {key} + 1 from (select (b * 100 + 37)::bigint as block "
                f"from generate_series(0, (pg_relation_size('{table}') / 8192 - 38) / 100) b) p "
                f"where t.ctid = format('(%s,1)', p.block)::tid"
            )
        self.settle()

    def facts(self, host=None, port=None):
        """What the tables hold, to compare a restored server with this one."""
        query = (
            "select (select count(*) || '/' || sum(abalance) from pgbench_accounts) || ' ' || "
            "(select count(*) || '/' || sum(customer) || '/' || sum(total) from orders)"
        )
        command = [f"{self.bin}/psql", "-XAtq", "-h", host or self.socket, "-p", str(port or self.port)]
        command += ["-U", "postgres", "-d", "postgres", "-v", "ON_ERROR_STOP=1", "-c", query]
        return run(command, user=self.user, cwd=self.root).output.strip()

    def check(self, restored, then=None):
        """A sentence on what is wrong with a restored cluster; None when all is right. `then`: what
        the tables held, where that was not just now."""
        wrong = None if then else differing(self.data, restored, volatile=VOLATILE, times=False)
        if wrong:
            return wrong
        own(restored, self.user)
        os.chmod(restored, 0o700)
        try:
            os.remove(os.path.join(restored, "postmaster.pid"))
        except FileNotFoundError:
            pass
        port, log = self.port + 1, os.path.join(self.root, "restored.log")
        options = f"-k {self.socket} -p {port} -c archive_mode=off -c hot_standby=on"
        try:
            self.program(
                "pg_ctl", "start", "-D", restored, "-l", log, "-w", "-t", "300", "-s", "-o", options,
            )
        except Failed as failure:
            with open(log, encoding="utf-8", errors="replace") as file:
                return f"the restored server does not start: {failure} {file.read()[-1500:]}"
        try:
            end = time.monotonic() + 120
            while True:
                try:
                    facts = self.facts(port=port)
                    break
                except Failed as failure:
                    if time.monotonic() > end:
                        return f"the restored server answers nothing: {failure}"
                    time.sleep(0.2)
            here = then or self.facts()
            return None if facts == here else f"the restored server says {facts}, not {here}"
        finally:
            self.program("pg_ctl", "stop", "-D", restored, "-m", "immediate", "-w", "-s")

    def changed_pages(self, before):
        """How many bytes of pages differ from an older copy of the cluster, raw and by zstd -3."""
        zstd = subprocess.Popen(["zstd", "-3", "-q", "-c"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        sizes = []
        reader = threading.Thread(target=lambda: sizes.append(sum(map(len, iter(lambda: zstd.stdout.read(1 << 16), b"")))))
        reader.start()
        raw = 0
        for path in glob.glob(os.path.join(self.data, "base/*/*")):
            old_path = os.path.join(before, os.path.relpath(path, self.data))
            if not os.path.isfile(path) or path.endswith("pg_internal.init"):
                continue
            with open(path, "rb") as new, open(old_path if os.path.exists(old_path) else os.devnull, "rb") as old:
                while block := new.read(1 << 20):
                    past = old.read(1 << 20)
                    if block == past:
                        continue
                    for at in range(0, len(block), 8192):
                        page = block[at : at + 8192]
                        if page != past[at : at + 8192]:
                            raw += len(page)
                            zstd.stdin.write(page)
        zstd.stdin.close()
        reader.join()
        zstd.wait()
        return raw, sizes[0]


class Tree:
    """A copy of /usr/lib and /usr/share, or of a part of them, that nothing else changes."""

    def __init__(self, work, size):
        self.size = size
        self.path = os.path.join(work, f"tree-{size}")

    def prepare(self):
        complete = self.path + ".complete"
        if os.path.exists(complete):
            self.rest(complete)
            return
        shutil.rmtree(self.path, ignore_errors=True)
        os.makedirs(self.path)
        limit = SIZES[self.size][2]
        say("making the tree of files from /usr/lib and /usr/share")
        if limit is None:
            run(["cp", "-a", "--reflink=auto", "/usr/lib", "/usr/share", self.path], allowed=(0, 1))
        else:
            chosen = []
            for folder, _, files in os.walk("/usr/share"):
                chosen += [os.path.join(folder, name) for name in sorted(files)]
            step = max(1, len(chosen) // limit)
            listing = os.path.join(self.path + ".list")
            with open(listing, "w", encoding="utf-8", errors="surrogateescape") as file:
                file.writelines(path + "\0" for path in chosen[::step][:limit])
            run(f"tar -c --null -T {listing} 2>/dev/null | tar -x -C {self.path}")
            os.remove(listing)
        with open(complete, "w", encoding="utf-8"):
            pass
        self.rest(complete)

    @staticmethod
    def rest(complete):
        """Waits until the tree is as old as trees are: what has just changed is read twice by those
        who know that a change within a minute can hide."""
        while (left := os.stat(complete).st_ctime + 90 - time.time()) > 0:
            time.sleep(min(left, 5))

    def describe(self):
        files = size = 0
        for folder, _, names in os.walk(self.path):
            for name in names:
                status = os.lstat(os.path.join(folder, name))
                if stat.S_ISREG(status.st_mode):
                    files += 1
                    size += status.st_size
        return f"{files:,} files, {size / 1e9:.2f} GB"

    def check(self, restored):
        return differing(self.path, restored)


def differing(original, copy, volatile=None, times=True):
    """The first difference between two trees in words: names, kinds, modes, times, content."""

    def walk(root):
        found = {}
        waiting = [""]
        while waiting:
            folder = waiting.pop()
            for entry in os.scandir(os.path.join(root, folder)):
                path = os.path.join(folder, entry.name)
                if volatile is not None and volatile.search(path):
                    continue
                found[path] = entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(path)
        return found

    ours, theirs = walk(original), walk(copy)
    for path in ours.keys() - theirs.keys():
        return f"{path} is missing"
    for path in theirs.keys() - ours.keys():
        return f"{path} was not there"
    for path, one in ours.items():
        two = theirs[path]
        if one.st_mode != two.st_mode:
            return f"{path} has mode {two.st_mode:o}, not {one.st_mode:o}"
        here, there = os.path.join(original, path), os.path.join(copy, path)
        if stat.S_ISLNK(one.st_mode):
            if os.readlink(here) != os.readlink(there):
                return f"{path} links to {os.readlink(there)}"
            continue
        if times and one.st_mtime_ns != two.st_mtime_ns:
            return f"{path} has another time of modification"
        if stat.S_ISREG(one.st_mode):
            if one.st_size != two.st_size:
                return f"{path} has {two.st_size} bytes, not {one.st_size}"
            if not filecmp.cmp(here, there, shallow=False):
                return f"{path} has other content"
    filecmp.clear_cache()
    return None
