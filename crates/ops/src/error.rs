//! The one error that reaches a person: what went wrong, what to do, and how the process ends.

use std::fmt;

/// What went wrong, as far as exit codes and JSON tell cases apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The command does not make sense as it was given.
    Usage,
    /// The configuration cannot be used as it is.
    Configuration,
    /// The store holds no repository.
    NoRepository,
    /// Somebody else is at work.
    Busy,
    /// The key opens none of the repository's key slots.
    WrongKey,
    /// Something stored is missing or altered.
    Damaged,
    /// There is nothing of that name.
    NotFound,
    /// The work was stopped from outside.
    Interrupted,
    /// Everything else: nothing was lost.
    Failed,
}

impl ErrorKind {
    /// The name in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Usage => "usage",
            Self::Configuration => "configuration",
            Self::NoRepository => "no-repository",
            Self::Busy => "busy",
            Self::WrongKey => "wrong-key",
            Self::Damaged => "damaged",
            Self::NotFound => "not-found",
            Self::Interrupted => "interrupted",
            Self::Failed => "failed",
        }
    }

    /// How a process ends that failed like this.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Usage | Self::Configuration => 2,
            Self::NoRepository => 10,
            Self::Busy => 11,
            Self::WrongKey => 12,
            Self::Damaged => 20,
            Self::Interrupted => 130,
            Self::NotFound | Self::Failed => 1,
        }
    }
}

/// What failed: a sentence, what to do about it, and the cause.
///
/// Several things may be wrong at once (a configuration with three mistakes); then the first one
/// speaks and [`Error::also`] has the others.
#[derive(Debug)]
pub struct Error {
    inner: Box<Inner>,
}

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
    also: Vec<Error>,
}

impl Error {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            inner: Box::new(Inner {
                kind,
                message: message.into(),
                hint: None,
                source: None,
                also: Vec::new(),
            }),
        }
    }

    /// The command does not make sense as it was given.
    pub fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(ErrorKind::Usage, message).with_hint(hint)
    }

    /// An operating system's error on a file that belongs to no repository.
    pub fn io(doing: &str, path: impl AsRef<std::path::Path>, error: std::io::Error) -> Self {
        let hint = match error.kind() {
            std::io::ErrorKind::PermissionDenied => {
                Some("run it as a user who may, or change the permissions")
            }
            std::io::ErrorKind::StorageFull => {
                Some("free space on that file system, then run the same command again")
            }
            _ => None,
        };
        let mut it = Self::new(
            ErrorKind::Failed,
            format!("could not {doing} {}: {}", path.as_ref().display(), plain(&error)),
        )
        .with_source(error);
        if let Some(hint) = hint {
            it = it.with_hint(hint);
        }
        it
    }

    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.inner.hint = Some(hint.into());
        self
    }

    #[must_use]
    pub fn with_source(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.inner.source = Some(source.into());
        self
    }

    /// Puts what was being done before the message.
    #[must_use]
    pub fn while_doing(mut self, doing: impl fmt::Display) -> Self {
        self.inner.message = format!("{doing}: {}", self.inner.message);
        self
    }

    /// The first error, carrying the others. `None` when there is none.
    pub fn all(errors: impl IntoIterator<Item = Self>) -> Option<Self> {
        let mut errors = errors.into_iter();
        let mut first = errors.next()?;
        first.inner.also.extend(errors);
        Some(first)
    }

    pub fn kind(&self) -> ErrorKind {
        self.inner.kind
    }

    /// A second error that says the same, without its causes: one failure, several victims.
    #[must_use]
    pub fn repeat(&self) -> Self {
        let mut it = Self::new(self.kind(), self.to_string());
        it.inner.hint.clone_from(&self.inner.hint);
        it
    }

    /// What a person can do about it.
    pub fn hint(&self) -> Option<&str> {
        self.inner.hint.as_deref()
    }

    /// What else is wrong.
    pub fn also(&self) -> &[Self] {
        &self.inner.also
    }
}

/// An operating system's error without "(os error 2)", in lower case.
pub(crate) fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut chars = text.chars();
    match chars.next() {
        Some(first) if chars.clone().next().is_some_and(char::is_lowercase) => {
            first.to_lowercase().chain(chars).collect()
        }
        _ => text.to_owned(),
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.inner.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.inner.source.as_ref().map(|s| s.as_ref() as &(dyn std::error::Error + 'static))
    }
}

pub(crate) fn of_repo(kind: backstay_repo::RepoErrorKind) -> ErrorKind {
    use backstay_repo::RepoErrorKind as Repo;
    match kind {
        Repo::NoRepository => ErrorKind::NoRepository,
        Repo::WrongKey => ErrorKind::WrongKey,
        Repo::Busy => ErrorKind::Busy,
        Repo::Damaged => ErrorKind::Damaged,
        Repo::NotFound | Repo::Ambiguous => ErrorKind::NotFound,
        Repo::Aborted => ErrorKind::Interrupted,
        Repo::Usage => ErrorKind::Usage,
        _ => ErrorKind::Failed,
    }
}

impl From<backstay_postgres::PostgresError> for Error {
    fn from(error: backstay_postgres::PostgresError) -> Self {
        use backstay_postgres::PostgresErrorKind as Postgres;
        let kind = match error.kind() {
            Postgres::Usage => ErrorKind::Usage,
            Postgres::Damaged => ErrorKind::Damaged,
            Postgres::Busy => ErrorKind::Busy,
            Postgres::Repo => error.repo_kind().map_or(ErrorKind::Failed, of_repo),
            _ => ErrorKind::Failed,
        };
        let mut it = Self::new(kind, error.to_string());
        if let Some(hint) = error.hint() {
            it = it.with_hint(hint);
        }
        it.with_source(error)
    }
}

impl From<backstay_repo::RepoError> for Error {
    fn from(error: backstay_repo::RepoError) -> Self {
        let mut it = Self::new(of_repo(error.kind()), error.to_string());
        if let Some(hint) = error.hint() {
            it = it.with_hint(hint);
        }
        it.with_source(error)
    }
}

impl From<backstay_store::StoreError> for Error {
    fn from(error: backstay_store::StoreError) -> Self {
        let mut it = Self::new(ErrorKind::Failed, error.to_string());
        if let Some(hint) = error.hint() {
            it = it.with_hint(hint);
        }
        it.with_source(error)
    }
}
