"""Backstay and its peers for PostgreSQL: how each takes backups, archives, fetches and streams.

Encryption is on where there is any (Backstay, pgBackRest), compression is zstd 3 there too; Barman and
pg_basebackup store what they get as it is. Two processes or threads work where a tool can be told.
"""

import getpass
import os
import shlex
import shutil
import signal
import subprocess

from .machine import Failed, own, run, stored
from .tools import Backstay, PgBackRest


class Streaming:
    """A receiver of the log that was started, and is ended or killed."""

    def __init__(self, command, user, env, cwd, log):
        as_user = {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        self.log = log
        with open(log, "w", encoding="utf-8") as said:
            self.process = subprocess.Popen(
                [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=said, stderr=said,
                env={**os.environ, "LC_ALL": "C.UTF-8", "HOME": cwd, **env}, cwd=cwd, start_new_session=True, **as_user,
            )

    def end(self, how):
        """`kill`: at once. `stop`: in order. `settle`: in order, once it has noticed by itself that the server is gone."""
        try:
            if how == "settle":
                try:
                    self.process.wait(3)
                except subprocess.TimeoutExpired:
                    pass
            os.killpg(self.process.pid, signal.SIGKILL if how == "kill" else signal.SIGINT)
        except ProcessLookupError:
            pass
        self.process.wait(60)


class Ours(Backstay):
    """Backstay, which finds changed pages by their hashes."""

    detect = "hash"

    def fresh(self, source, user):
        super().fresh(source, user)
        with open(self.config, "a", encoding="utf-8") as file:
            file.write(f'detect = "{self.detect}"\n')
        self.source = source

    def archiver(self):
        return f'exec {shlex.join(self.words)} wal push "$1"'

    def archive(self, source):
        pass

    def push(self, segment):
        return self.run(*self.words, "wal", "push", segment, cwd=self.source.data)

    def before(self):
        """What has to be done before a backup or a restore, and is not measured."""

    def restore(self, source, target):
        return self.run(*self.words, "restore", "bench", "--to", target)

    def fetch(self, name, to, ahead):
        words = ["wal", "fetch", name, to] + ([] if ahead else ["--prefetch", "0"])
        return self.run(*self.words, *words)

    def stay(self, user):
        """The resident archiver."""
        command = self.words + ["wal", "serve", "bench"]
        return Streaming(command, user, self.env, self.home, os.path.join(self.home, "serve.log"))

    def receiver(self, user):
        command = self.words + ["wal", "receive", "bench", "--create-slot"]
        return Streaming(command, user, self.env, self.home, os.path.join(self.home, "receive.log"))

    receiver_name = "backstay_bench"
    slot = "backstay_bench"


class OursByLog(Ours):
    """Backstay, which takes the log's word for which pages changed, and a sample of the rest."""

    name = "backstay, wal"
    detect = "wal"


class Pgbackrest(PgBackRest):
    """With block incrementals, which the newest have."""

    def fresh(self, source, user):
        self.source = source
        super().fresh(source, user)
        config = os.path.join(self.home, "pgbackrest.conf")
        with open(config, encoding="utf-8") as file:
            text = file.read()
        with open(config, "w", encoding="utf-8") as file:
            file.write(text.replace("[global]\n", "[global]\nrepo1-bundle=y\nrepo1-block=y\n", 1))
        own(self.home, user)

    def archive(self, source):
        pass

    def archiver(self):
        return f'exec {shlex.join(self.words)} archive-push "$1"'

    def before(self):
        pass

    def archiver_ahead(self):
        return f'exec {shlex.join(self.words)} --archive-async --log-level-console=error archive-push "$1"'

    def push(self, segment):
        return self.run(*self.words, "archive-push", segment, cwd=self.source.data)

    def fetch(self, name, to, ahead):
        words = ["--archive-async", "--archive-get-queue-max=256MiB"] if ahead else []
        return self.run(*self.words, *words, "archive-get", name, to, allowed=(0,))


class Files(Ours):
    """What Barman and pg_basebackup have in common: the archive is a folder."""

    name = ""
    stay = None

    def archiver(self):
        # Written under another name first, as the manual of the server asks; nobody waits for the disk.
        return f'{{ [ -f {self.incoming}/$(basename "$1") ] || rsync -a "$1" {self.incoming}/; }}'

    def push(self, segment):
        into = os.path.join(self.incoming, os.path.basename(segment))
        if not os.path.exists(into):
            self.run(["cp", segment, into])

    def version(self):
        return run([self.program(), "--version"]).output.split("\n")[0]

    def fetch(self, name, to, ahead):
        return self.run(["cp", os.path.join(self.incoming, name), to])


class BaseBackup(Files):
    """pg_basebackup, pg_combinebackup, pg_receivewal, and a folder that segments are copied to."""

    name = "pg_basebackup"

    def program(self):
        return os.path.join(self.options.server_bin, "pg_basebackup")

    def fresh(self, source, user):
        self.empty(user)
        self.source, self.env = source, {"PGHOST": source.socket, "PGPORT": str(source.port), "PGUSER": "postgres"}
        self.incoming = os.path.join(self.home, "wal")
        os.makedirs(self.incoming)
        own(self.home, user)
        self.chain, self.taken = [], 0

    def backup(self, source, kind="full"):
        self.taken += 1
        into = os.path.join(self.repository, str(self.taken))
        words = [self.program(), "-D", into, "-c", "fast", "-X", "none"]
        if kind == "full":
            self.chain = []
        else:
            words += ["--incremental", os.path.join(self.chain[-1], "backup_manifest")]
        taken = self.run(words)
        self.chain.append(into)
        return taken

    def restore(self, source, target):
        taken = self.run([os.path.join(self.options.server_bin, "pg_combinebackup"), *self.chain, "-o", target])
        self.recover_from(target)
        return taken

    def recover_from(self, target):
        with open(os.path.join(target, "postgresql.auto.conf"), "a", encoding="utf-8") as file:
            file.write(f"restore_command = 'cp {self.incoming}/%f %p'\n")
        with open(os.path.join(target, "recovery.signal"), "w", encoding="utf-8"):
            pass

    def stored(self):
        return stored(self.repository)

    def receiver(self, user):
        received = os.path.join(self.home, "received")
        # What an earlier one received was taken in, and its slot is gone.
        shutil.rmtree(received, ignore_errors=True)
        os.makedirs(received)
        own(received, user)
        command = [os.path.join(self.options.server_bin, "pg_receivewal"), "-D", received, "--slot", self.slot, "-n"]
        self.run(command[:1] + ["--slot", self.slot, "--create-slot", "--if-not-exists"])
        if self.synchronous:
            command.append("--synchronous")
        return Streaming(command, user, {**self.env, "PGAPPNAME": self.receiver_name}, self.home, os.path.join(self.home, "receive.log"))

    synchronous = False
    receiver_name = slot = "receivewal"

    def take_in(self):
        """What was received counts for recovery, the part of a segment too."""
        received = os.path.join(self.home, "received")
        for name in os.listdir(received):
            into = os.path.join(self.incoming, name.removesuffix(".partial"))
            if not os.path.exists(into):
                shutil.copyfile(os.path.join(received, name), into)
        own(self.incoming, self.user)


class Barman(Files):
    """Barman over the streaming protocol, with the server's own incrementals."""

    name = "barman"

    def program(self):
        return self.options.barman or shutil.which("barman")

    def version(self):
        return run([self.program(), "--version"]).output.split("\n")[0].split(" Barman")[0]

    def fresh(self, source, user):
        self.empty(user)
        self.source, self.env = source, {}
        config = os.path.join(self.home, "barman.conf")
        self.incoming = os.path.join(self.repository, "bench/incoming")
        connection = f"host={source.socket} port={source.port} user=postgres dbname=postgres"
        with open(config, "w", encoding="utf-8") as file:
            file.write(
                f"[barman]\nbarman_user = {user.pw_name if user else getpass.getuser()}\nbarman_home = {self.repository}\nconfiguration_files_directory = {self.home}/conf.d\n"
                f"log_file = {self.home}/barman.log\nlog_level = WARNING\nbarman_lock_directory = {self.home}\n"
                f"path_prefix = {self.options.server_bin}\n"
                f"[bench]\ndescription = bench\nconninfo = {connection}\nstreaming_conninfo = {connection}\n"
                "backup_method = postgres\narchiver = on\nminimum_redundancy = 0\nimmediate_checkpoint = true\n"
            )
        for folder in (self.incoming, os.path.join(self.home, "conf.d")):
            os.makedirs(folder)
        own(self.home, user)
        self.words = [self.program(), "-c", config]
        # It makes its other folders, and says what is not there yet.
        said = self.run(*self.words, "check", "bench", allowed=(0, 1)).output
        if "PostgreSQL: OK" not in said:
            raise Failed(said)

    def backup(self, source, kind="full"):
        words = [*self.words, "backup", "bench"] + ([] if kind == "full" else ["--incremental", "last"])
        return self.run(words)

    def before(self):
        self.run(*self.words, "archive-wal", "bench", allowed=(0, 1))

    def restore(self, source, target):
        # `get-wal` brings the log to recovery as it asks for it. It would be called by its bare name.
        taken = self.run(*self.words, "recover", "--get-wal", "bench", "last", target)
        with open(os.path.join(target, "postgresql.auto.conf"), "a", encoding="utf-8") as file:
            file.write(f"restore_command = '{shlex.join(self.words)} get-wal bench %f > %p'\n")
        return taken

    def fetch(self, name, to, ahead):
        return self.run(f"{shlex.join(self.words)} get-wal bench {name} > {shlex.quote(to)}")

    def stored(self):
        return stored(os.path.join(self.repository, "bench/base"))


ALL = [Ours, OursByLog, Pgbackrest, Barman, BaseBackup]


def choose(work, options):
    """The tools that can be had, and a word on those that cannot."""
    chosen, without = [], {"wal-g": "this script does not know it" if shutil.which("wal-g") else "not installed"}
    for kind in ALL:
        tool = kind(work, options)
        if options.tools and tool.name not in options.tools:
            continue
        try:
            if not tool.program():
                without[tool.name] = "not installed"
                continue
            tool.version()
            chosen.append(tool)
        except (Failed, OSError) as failure:
            without[tool.name] = str(failure).strip().split("\n")[0]
    return chosen, without
