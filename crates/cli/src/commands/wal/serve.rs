//! `backstay wal serve`: stays, so that `wal push` need not open a repository for each segment.

use std::num::NonZero;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use backstay_ops::config::{RepositoryConfig, SourceConfig, SourceSettings};
use backstay_ops::units::count;
use backstay_ops::{Context, Error, ErrorKind};
use backstay_postgres::wal::{self, Push, Resident};
use backstay_repo::Progress;
use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;

use super::super::postgres::choose;
use super::push::{Ready, document};
use super::socket::{self, Answer, Listening};
use crate::app::{App, Outcome, Result};
use crate::work;

/// How long a repository is kept open: whoever changes its keys or hosts in between is heeded by then.
const REOPEN: Duration = Duration::from_secs(60);
/// How often the wish to stop is looked for.
const TICK: Duration = Duration::from_millis(250);

/// Stay and push for `wal push`, which then takes a few milliseconds, and be ahead of PostgreSQL
///
/// Runs until it is ended, as the user that PostgreSQL runs as and with the same configuration. It
/// keeps the repositories open and pushes the next files, several at once, while PostgreSQL asks for
/// one after the other. `archive_command` stays as it is: without this process, or when something
/// fails, `wal push` does the work itself.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// A source of kind postgres [default: the only one]
    source: Option<String>,

    /// Every source of kind postgres
    #[arg(long, conflicts_with = "source")]
    all: bool,

    /// How many files may be pushed before PostgreSQL asks for them
    #[arg(long, value_name = "COUNT", default_value = "16")]
    ahead: usize,

    /// How many are pushed at once [default: one for each core, 4 to a bucket]
    #[arg(long, value_name = "COUNT")]
    threads: Option<NonZero<usize>>,
}

pub fn run(args: &ServeArgs, app: &App) -> Result<Outcome> {
    let context = app.context()?;
    let sources: Vec<&SourceConfig> = if args.all {
        let all = context.config.all_sources()?.iter();
        let found: Vec<_> =
            all.filter(|source| matches!(source.settings, SourceSettings::Postgres(_))).collect();
        if found.is_empty() {
            choose(None, context)?;
        }
        found
    } else {
        vec![choose(args.source.as_deref(), context)?]
    };
    // Whoever finds it listening may end it, and it ends as it should.
    let _graceful = app.interrupt.graceful();
    let mut served = Vec::new();
    for source in sources {
        served.push(Served::new(args, source, context)?);
    }
    app.show_warnings();
    for one in &served {
        app.output
            .say(format!("Serving the archive of {}; end it with Ctrl-C.", one.source.name))?;
    }
    let title = match served.as_slice() {
        [one] => format!("Serving the archive of {}", one.source.name),
        several => format!("Serving the archives of {} sources", several.len()),
    };
    work::run(app, &title, |progress| {
        progress.set_phase("until Ctrl-C");
        std::thread::scope(|scope| {
            for one in &served {
                scope.spawn(|| one.listen(progress));
            }
        });
    });
    let mut documents = Vec::new();
    for one in &served {
        let (name, pushed) = (&one.source.name, one.pushed.load(Relaxed));
        app.output.answer(format!("Archived {} of {name}.", count(pushed, "file", "files")))?;
        documents.push(json!({ "source": name, "pushed": pushed }));
    }
    app.output.document(&json!({ "served": documents }))?;
    Ok(Outcome::Done)
}

/// One source, and the socket that is listened on for it.
struct Served<'a> {
    context: &'a Context,
    source: &'a SourceConfig,
    configs: Vec<&'a RepositoryConfig>,
    fingerprint: u64,
    listening: Listening,
    resident: Resident,
    open: Mutex<Option<Open>>,
    /// Files that were answered for.
    pushed: AtomicU64,
}

/// Repositories that are kept open.
struct Open {
    push: Arc<Push>,
    since: Instant,
}

impl<'a> Served<'a> {
    fn new(args: &ServeArgs, source: &'a SourceConfig, context: &'a Context) -> Result<Self> {
        let configs = context.config.archives_of(source)?;
        // What cannot be opened now is said now, and not when PostgreSQL asks.
        let ready = Ready::open(context, Some(source), configs.clone())?;
        if let Some(error) = ready.unopened {
            return Err(error);
        }
        let cores = std::thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN);
        let remote = ready.repositories.iter().any(|repository| repository.store().is_remote());
        let usual = if remote { cores.max(NonZero::new(4).unwrap_or(cores)) } else { cores };
        Ok(Self {
            fingerprint: socket::fingerprint(source, &configs),
            listening: Listening::start(context, &source.name)?,
            resident: Resident::new(args.ahead, args.threads.unwrap_or(usual)),
            open: Mutex::new(None),
            pushed: AtomicU64::new(0),
            context,
            source,
            configs,
        })
    }

    /// Answers until the wish to stop; what was asked for by then is answered before this returns.
    fn listen(&self, progress: &Progress) {
        let tick = Timespec { tv_sec: 0, tv_nsec: TICK.subsec_nanos().into() };
        std::thread::scope(|scope| {
            while !progress.is_cancelled() {
                let mut ready = [PollFd::new(&self.listening.listener, PollFlags::IN)];
                if !matches!(poll(&mut ready, Some(&tick)), Ok(1..)) {
                    continue;
                }
                let Ok((stream, _)) = self.listening.listener.accept() else { continue };
                scope.spawn(move || {
                    if let Err(error) = self.answer(&stream) {
                        tracing::warn!(source = self.source.name, %error, "a request got no answer");
                    } else {
                        progress.add_done(0, 1);
                    }
                });
            }
        });
    }

    fn answer(&self, stream: &UnixStream) -> std::io::Result<()> {
        stream.set_nonblocking(false)?;
        socket::check_peer(stream)?;
        let request = socket::read_request(stream)?;
        stream.set_write_timeout(Some(socket::PULSE))?;
        if request.fingerprint != self.fingerprint {
            let why = "it is of another version, or has another configuration: start it again";
            return socket::send(stream, &Answer::Yourself(why.to_owned()));
        }
        let answer = std::thread::scope(|scope| {
            let (done, wait) = mpsc::channel::<()>();
            scope.spawn(move || {
                while wait.recv_timeout(socket::PULSE) == Err(mpsc::RecvTimeoutError::Timeout) {
                    // One that is gone shows when the answer is sent.
                    let _ = std::io::Write::write_all(&mut &*stream, b"\n");
                }
            });
            let answer = self.push(&request.path);
            drop(done);
            answer
        });
        let answer = match answer {
            Ok(report) => {
                self.pushed.fetch_add(1, Relaxed);
                Answer::Durable(report)
            }
            Err(error) => {
                // Opened anew for the next one: this may be all that was wrong.
                *self.lock() = None;
                Answer::Yourself(error.to_string())
            }
        };
        socket::send(stream, &answer)
    }

    fn push(&self, path: &Path) -> Result<serde_json::Value> {
        let push = self.open()?;
        Ok(document(&self.resident.push(path, &push)?))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Open>> {
        self.open.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// How files are pushed, to repositories that were opened a moment ago.
    fn open(&self) -> Result<Arc<Push>> {
        let mut open = self.lock();
        if let Some(open) = open.as_ref().filter(|open| open.since.elapsed() < REOPEN) {
            return Ok(open.push.clone());
        }
        let ready = Ready::open(self.context, Some(self.source), self.configs.clone())?;
        if let Some(error) = ready.unopened {
            return Err(error);
        }
        if !ready.late.is_empty() {
            let missing = backstay_ops::config::listed(&ready.late);
            return Err(Error::new(ErrorKind::Failed, format!("{missing} cannot be opened")));
        }
        let Ready { repositories, options, .. } = ready;
        let push: Arc<Push> = Arc::new(move |path| wal::push(&repositories, path, &options));
        *open = Some(Open { push: push.clone(), since: Instant::now() });
        Ok(push)
    }
}
