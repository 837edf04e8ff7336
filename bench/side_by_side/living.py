"""Data that lives: a tree of files and a cluster that change from day to day, from a seed."""

import os
import random
import shutil
import stat

from .data import Cluster
from .machine import run, say

# bytes of the tree, scale of pgbench, rows of the second table, transactions of a day
MONTHS = {
    "small": (60_000_000, 2, 60_000, 400),
    "full": (1_000_000_000, 22, 1_200_000, 20_000),
}

WORDS = "anchor bow chart deck ebb fathom gale helm isle jib keel leeward mast north oar port quay reef stern tide".split()


class LivingTree:
    """Real files (a part of /usr/lib and /usr/share), logs, a spool of small files and a disk image,
    and what people and programs do to such things in a day."""

    def __init__(self, work, size, user, seed):
        self.path = os.path.join(work, f"living-tree-{size}")
        self.bytes = MONTHS[size][0]
        self.user = user
        self.random = random.Random(seed)

    def prepare(self):
        """Makes the tree as it is on the first day."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.makedirs(self.path)
        say(f"making a tree of {self.bytes / 1e6:,.0f} MB")
        room = self.bytes * 0.8
        chosen = []
        for root in ("/usr/share", "/usr/lib"):
            for folder, folders, names in os.walk(root):
                folders.sort()
                for name in sorted(names):
                    path = os.path.join(folder, name)
                    status = os.lstat(path)
                    if stat.S_ISREG(status.st_mode) and 0 < status.st_size < 16 << 20:
                        chosen.append((path, status.st_size))
        # The same files on the same machine, spread over all there are.
        self.random.shuffle(chosen)
        for path, size in chosen:
            if room < 0:
                break
            room -= size
            copy = os.path.join(self.path, "files", path.lstrip("/"))
            os.makedirs(os.path.dirname(copy), exist_ok=True)
            shutil.copyfile(path, copy)
        for number in range(4):
            self.write(f"logs/service-{number}.log", self.log(int(self.bytes * 0.01)))
        for number in range(600):
            self.write(f"spool/{number % 20}/{number}", self.text(200 + number % 3000))
        self.write("images/disk.img", self.blocks(int(self.bytes * 0.12) // 4096))
        self.own()

    def own(self):
        """Hands what is new to the server's user. What has not changed is left alone: another change
        of owner would be a change of each file."""
        if self.user is None:
            return
        for folder, _, names in os.walk(self.path):
            for path in [folder] + [os.path.join(folder, name) for name in names]:
                if os.lstat(path).st_uid != self.user.pw_uid:
                    os.lchown(path, self.user.pw_uid, self.user.pw_gid)

    def write(self, name, content, mode="wb"):
        path = os.path.join(self.path, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, mode) as file:
            file.write(content)

    def text(self, size):
        parts, length = [], 0
        while length < size:
            line = " ".join(self.random.choices(WORDS, k=9)) + f" {self.random.random():.6f}\n"
            parts.append(line)
            length += len(line)
        return "".join(parts).encode()[:size]

    def log(self, size):
        parts, length = [], 0
        while length < size:
            line = (
                f"2026-11-{self.random.randrange(1, 31):02} {self.random.randrange(86400):05} "
                f"{self.random.choice(WORDS)}[{self.random.randrange(30000)}]: request "
                f"{self.random.getrandbits(64):016x} took {self.random.randrange(3000)} ms\n"
            )
            parts.append(line)
            length += len(line)
        return "".join(parts).encode()[:size]

    def blocks(self, count):
        """Blocks of 4 KiB, half of them compressible, some of them empty."""
        parts = []
        for _ in range(count):
            kind = self.random.random()
            if kind < 0.15:
                parts.append(bytes(4096))
            elif kind < 0.55:
                parts.append((self.text(512) * 8)[:4096])
            else:
                parts.append(self.random.randbytes(4096))
        return b"".join(parts)

    def files(self):
        found = []
        for folder, folders, names in os.walk(os.path.join(self.path, "files")):
            folders.sort()
            found += [os.path.join(folder, name) for name in sorted(names)]
        return found

    def live(self, day):
        """What happens until the evening of a day."""
        files = self.files()
        self.random.shuffle(files)
        share = lambda percent: [files.pop() for _ in range(min(len(files), int(len(files) * percent / 100) + 1))]
        for path in share(1.0):  # edited: something is put in, taken out or written over
            with open(path, "rb") as file:
                content = bytearray(file.read())
            for _ in range(self.random.randrange(1, 4)):
                at = self.random.randrange(len(content) + 1)
                new = self.text(self.random.randrange(10, 3000))
                content[at : at + self.random.choice((0, len(new), 2 * len(new)))] = new
            with open(path, "wb") as file:
                file.write(content)
        for path in share(0.3):
            with open(path, "ab") as file:
                file.write(self.text(self.random.randrange(100, 20_000)))
        for path in share(0.3):
            os.rename(path, f"{path}.renamed-{day}")
        for path in share(0.4):
            os.remove(path)
        for number, path in enumerate(share(0.5)):  # new: some of something known, and more
            with open(path, "rb") as file:
                content = file.read()
            half = content[: len(content) // 2]
            self.write(f"files/new/{day:02}/{number}", half + self.text(len(half) // 2) + self.random.randbytes(500))
        for number in range(4):
            self.write(f"logs/service-{number}.log", self.log(int(self.bytes * 0.001)), "ab")
        if day % 7 == 0:
            for number in range(4):
                log = os.path.join(self.path, f"logs/service-{number}.log")
                os.rename(log, f"{log}.{day}")
                self.write(f"logs/service-{number}.log", self.log(1000))
            shutil.rmtree(os.path.join(self.path, "files/moved"), ignore_errors=True)
            shutil.copytree(os.path.join(self.path, "files/new"), os.path.join(self.path, "files/moved"))
            shutil.rmtree(os.path.join(self.path, "files/new"))
        for number in range(600):
            if self.random.random() < 0.3:
                self.write(f"spool/{number % 20}/{number}", self.text(200 + self.random.randrange(3000)))
        image = os.path.join(self.path, "images/disk.img")
        count = os.path.getsize(image) // 4096
        with open(image, "r+b") as file:
            for _ in range(max(1, count // 200)):
                # Most writes come near others.
                at = int(self.random.betavariate(2, 5) * count)
                file.seek(at * 4096)
                file.write(self.blocks(1))
        self.own()

    def describe(self):
        files = size = 0
        for folder, _, names in os.walk(self.path):
            files += len(names)
            size += sum(os.lstat(os.path.join(folder, name)).st_size for name in names)
        return f"{files:,} files, {size / 1e6:,.0f} MB"


class LivingCluster(Cluster):
    """A cluster on which pgbench runs by day and vacuum by night."""

    def __init__(self, work, user, size, seed):
        _, scale, rows, self.transactions = MONTHS[size]
        super().__init__(work, user, f"living-{size}", (scale, rows))
        self.seed = seed
        self.rows = rows

    def prepare(self):
        """Always from the first day on."""
        complete = os.path.join(self.root, "complete")
        if os.path.exists(complete):
            os.remove(complete)
        super().prepare()

    def live(self, day):
        first = self.rows + day * (self.rows // 100)
        self.program("pgbench", "-n", "-c", "1", "-t", str(self.transactions), f"--random-seed={self.seed + day}")
        self.sql(
            f"select setseed({(day % 100) / 100}); "
            "insert into orders select n, (n::bigint * 7919 % 100003)::int, "
            "timestamptz '2024-01-01' + n * interval '7 seconds', (random() * 100000)::numeric(9, 2), "
            f"md5(n::text), 'order ' || n || ' of day {day}' from generate_series({first + 1}, {first + self.rows // 100}) n"
        )
        # Those of today change the most.
        self.sql(f"update orders set total = total + 1 where id > {first - self.rows // 100} and id % 3 = 0")
        self.sql(f"delete from orders where id <= {day * (self.rows // 400)} and id % 2 = 0")
        self.sql("vacuum analyze")
        if day % 7 == 0:
            self.sql("vacuum full pgbench_branches, pgbench_tellers, pgbench_history")
            self.sql("reindex table orders")
        self.sql("select pg_switch_wal()")
        self.settle()

    def describe(self):
        size = run(["du", "-sb", self.data]).output.split()[0]
        return f"{self.version()}, {int(size) / 1e6:,.0f} MB"
