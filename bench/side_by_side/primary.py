"""A server with summaries of its log, whose segments go to the tool whose turn it is and are kept for the others."""

import glob
import os
import re
import shutil
import subprocess
import threading
import time

from .data import Cluster
from .machine import Failed, run

# scale of pgbench, rows of the second table, segments that are archived and fetched
SIZES = {"small": (8, 300_000, 24), "full": (150, 6_000_000, 120)}


class Primary(Cluster):
    """The cluster of bench/compare on a server that can make incremental backups by itself."""

    def __init__(self, work, user, size, binaries=None):
        self.binaries = binaries
        super().__init__(work, user, f"primary-{size}", SIZES[size][:2])
        self.kept = os.path.join(self.root, "kept")

    def find(self):
        """The newest server with pg_combinebackup, of the distribution or of the tests."""
        places = [self.binaries] if self.binaries else glob.glob("/usr/lib/postgresql/*/bin")
        places += glob.glob("/var/cache/backstay-test-servers/postgres/*/bin")
        places += glob.glob(os.path.expanduser("~/.cache/backstay-test-servers/postgres/*/bin"))
        wanted = ("postgres", "initdb", "pgbench", "psql", "pg_combinebackup", "pg_receivewal")
        found = [place for place in places if all(os.path.exists(os.path.join(place, name)) for name in wanted)]
        if not found:
            raise Failed("no PostgreSQL 17 or newer with all its programs is here; see `make servers`, or say --server")
        return max(found, key=lambda path: int(re.search(r"(\d+)/bin", path)[1]) if re.search(r"(\d+)/bin", path) else 0)

    def prepare(self):
        """Always anew: what one run has done is no beginning for the next."""
        if os.path.exists(os.path.join(self.data, "postmaster.pid")):
            self.program("pg_ctl", "stop", "-D", self.data, "-m", "immediate", "-w", "-s", allowed=(0, 1))
        shutil.rmtree(self.root, ignore_errors=True)
        self.make()
        self.sql("alter system set summarize_wal = on")
        # A commit has to be durable for its loss to mean anything.
        self.sql("alter system set fsync = on")
        self.sql("alter system set max_wal_size = '4GB'")
        os.makedirs(self.kept)
        os.chmod(self.kept, 0o777)
        self.stop()
        self.start()

    def give_to(self, line):
        """From now on each segment goes to the shell command `line` with `$1`, and is kept."""
        # Behind it: a link changes the file's times, by which a tool may know what it has pushed ahead.
        self.archive_with(f'( {line} ) && ln -f "$1" {self.kept}/')

    def finished(self):
        """The segments that were kept, in their order."""
        return sorted(name for name in os.listdir(self.kept) if re.fullmatch("[0-9A-F]{24}", name))

    def change(self, percent, turn):
        """Changes a row in each of so many of the pages of the two large tables, other ones each turn."""
        step = round(100 / percent)
        for table, key in (("pgbench_accounts", "abalance"), ("orders", "customer")):
            self.sql(
                f"update {table} t set {key} = {key} + 1 from (select (b * {step} + {turn % step})::bigint as block "
                f"from generate_series(0, (pg_relation_size('{table}') / 8192 - {step + 1}) / {step}) b) p "
                f"where t.ctid = (select min(ctid) from {table} where ctid >= format('(%s,0)', p.block)::tid "
                f"and ctid < format('(%s,0)', p.block + 1)::tid)"
            )
        self.settle()

    def archived(self):
        """Ends the segment in work, and waits until the archiver has given it away."""
        # A segment in which nothing was written is not ended.
        self.sql("select pg_create_restore_point('turn')")
        name = self.sql("select pg_walfile_name(pg_switch_wal())")
        self.wait(f"{name} is archived", lambda: (self.sql("select last_archived_wal from pg_stat_archiver") or "") >= name, 120)

    def write_log(self, segments):
        """Fills so many segments while nothing takes them away; the name of the last."""
        self.archive_with("exit 1")
        self.sql("create table if not exists filler (n int, words text)")
        for number in range(segments):
            # What pgbench would write, in less time: rows, their indexes' pages, and full pages.
            self.sql(f"insert into filler select n, md5(n::text) || repeat(md5((n * {number + 1})::text), 6) from generate_series(1, 45000) n")
            last = self.sql("select pg_walfile_name(pg_switch_wal())")
        return last

    def waiting(self):
        folder = os.path.join(self.data, "pg_wal/archive_status")
        return sum(name.endswith(".ready") for name in os.listdir(folder))

    @staticmethod
    def wait(what, condition, limit=600):
        end = time.monotonic() + limit
        while not condition():
            if time.monotonic() > end:
                raise Failed(f"waited {limit} s in vain until {what}")
            time.sleep(0.01)

    def kill(self):
        """All processes of the server at once, as when the machine dies."""
        with open(os.path.join(self.data, "postmaster.pid"), encoding="utf-8") as file:
            postmaster = int(file.readline())
        children = run(["pgrep", "-P", str(postmaster)], allowed=(0, 1)).output.split()
        for process in [postmaster] + [int(child) for child in children]:
            try:
                os.kill(process, 9)
            except ProcessLookupError:
                pass
        self.wait("the server is gone", lambda: not os.path.exists(f"/proc/{postmaster}"))
        os.remove(os.path.join(self.data, "postmaster.pid"))

    def consistent(self, restored, query=None):
        """Starts what was restored, waits until it takes writes, and asks it; seconds, and the answer."""
        from .machine import own

        own(restored, self.user)
        os.chmod(restored, 0o700)
        port, log = self.port + 1, os.path.join(self.root, "restored.log")
        options = f"-k {self.socket} -p {port} -c archive_mode=off -c hot_standby=on -c synchronous_standby_names=''"
        started = time.perf_counter()
        try:
            self.program("pg_ctl", "start", "-D", restored, "-l", log, "-w", "-t", "600", "-s", "-o", options)
            ask = [f"{self.bin}/psql", "-XAtq", "-h", self.socket, "-p", str(port), "-U", "postgres", "-d", "postgres", "-c"]
            self.wait(
                "the restored server takes writes",
                lambda: run(ask + ["select pg_is_in_recovery()"], user=self.user, cwd=self.root).output.strip() == "f",
            )
            seconds = time.perf_counter() - started
            answer = run(ask + [query], user=self.user, cwd=self.root).output.strip() if query else self.facts(port=port)
            return seconds, answer
        except Failed as failure:
            with open(log, encoding="utf-8", errors="replace") as file:
                raise Failed(f"the restored server: {failure} {file.read()[-1000:]}") from failure
        finally:
            self.program("pg_ctl", "stop", "-D", restored, "-m", "immediate", "-w", "-s", allowed=(0, 1))


class Client(threading.Thread):
    """Somebody who commits one row after the other, and remembers the last that the server confirmed."""

    def __init__(self, cluster):
        super().__init__(daemon=True)
        self.cluster = cluster
        self.last = 0
        self.began = time.perf_counter()
        self.ended = None
        command = [f"{cluster.bin}/psql", "-XAtq", "-h", cluster.socket, "-p", str(cluster.port), "-U", "postgres", "-d", "postgres"]
        user = {} if cluster.user is None else {"user": cluster.user.pw_uid, "group": cluster.user.pw_gid, "extra_groups": []}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=1, **user
        )

    def run(self):
        number = 0
        try:
            while True:
                number += 1
                self.process.stdin.write(f"insert into commits values ({number}) returning n;\n")
                self.process.stdin.flush()
                if self.process.stdout.readline().strip() != str(number):
                    return
                self.last = number
        except (BrokenPipeError, ValueError):
            return
        finally:
            self.ended = time.perf_counter()

    def rate(self):
        return self.last / ((self.ended or time.perf_counter()) - self.began)
