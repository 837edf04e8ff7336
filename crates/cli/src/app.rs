//! What every command is given: flags, output, and the configuration once somebody asks for it.

use std::cell::OnceCell;
use std::process::ExitCode;

use backstay_ops::config::{Config, RepositoryFlags, Search};
use backstay_ops::{Context, Error, ErrorKind};
use backstay_repo::Environment;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::cli::Global;
use crate::interrupt::Interrupt;
use crate::output::Output;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// How a command ended that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// Some items could not be read or written; they were listed.
    Partial,
    /// Some of several things failed, and were reported.
    Failed,
    /// All of several things failed in the same way, and were reported.
    FailedAs(ErrorKind),
    /// Verification found damage.
    Damage,
    /// `wal fetch`: the archive said that it has no such file.
    Absent,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        Self::from(match outcome {
            Outcome::Done => 0,
            Outcome::Failed | Outcome::Absent => 1,
            Outcome::FailedAs(kind) => kind.exit_code(),
            Outcome::Partial => 3,
            Outcome::Damage => 20,
        })
    }
}

pub struct App {
    pub global: Global,
    pub output: Output,
    pub interrupt: Interrupt,
    /// The words of the command, as `key add`.
    pub command: String,
    context: OnceCell<Context>,
}

impl App {
    pub fn new(global: Global, command: String) -> Self {
        let output = Output::new(&global);
        Self { global, output, interrupt: Interrupt::default(), command, context: OnceCell::new() }
    }

    pub fn search(&self) -> Search {
        Search::from_process(self.global.config.clone())
    }

    /// The configuration, with flags applied; read when first asked for.
    pub fn context(&self) -> Result<&Context> {
        if let Some(context) = self.context.get() {
            return Ok(context);
        }
        let search = self.search();
        let mut config = Config::load(&search)?;
        let flags = RepositoryFlags {
            repository: self.global.repository.clone(),
            key_file: self.global.key_file.clone(),
            identity: self.global.identity.clone(),
        };
        config.apply(&flags, &search)?;
        let mut context = Context::new(config, search, Environment::system());
        context.command.clone_from(&self.command);
        Ok(self.context.get_or_init(|| context))
    }

    /// Prints what was found unwise so far.
    pub fn show_warnings(&self) {
        if let Some(context) = self.context.get() {
            for warning in context.take_warnings() {
                self.output.warn(&warning.message, Some(&warning.hint));
            }
        }
    }

    /// Whether tables need to say which repository.
    pub fn several_repositories(&self) -> Result<bool> {
        Ok(self.context()?.config.repositories()?.len() > 1)
    }

    pub fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    pub fn zone(&self) -> TimeZone {
        TimeZone::system()
    }
}
