use std::fmt;
use std::path::Path;

use backstay_repo::{RepoError, RepoErrorKind};

/// What went wrong, as far as a caller must tell cases apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PostgresErrorKind {
    /// What was asked for makes no sense, or the configuration cannot be used.
    Usage,
    /// No session with the server, or it broke.
    Connection,
    /// The server refused a statement.
    Server,
    /// A version or a setting of the server that cannot be worked with.
    Unsupported,
    /// The data directory is not what the server or the snapshot says it is.
    Mismatch,
    /// The archive lacks what is needed, or other content stands under a name.
    Archive,
    /// The recovery target cannot be reached; the message names the nearest that can.
    Target,
    /// Bytes that are not what they should be: a control file, a page, a segment.
    Damaged,
    /// Somebody else is at work.
    Busy,
    /// A server that was to be started did not get as far as it should.
    Start,
    /// The operating system failed on a file.
    Io,
    /// The repository failed; see [`PostgresError::repo_kind`].
    Repo,
}

/// What failed on the way to or from PostgreSQL: a sentence, what to do about it, and the cause.
#[derive(Debug)]
pub struct PostgresError {
    inner: Box<Inner>,
}

#[derive(Debug)]
struct Inner {
    kind: PostgresErrorKind,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
    repo: Option<RepoErrorKind>,
    transient: bool,
}

impl PostgresError {
    pub fn new(kind: PostgresErrorKind, message: impl Into<String>) -> Self {
        Self {
            inner: Box::new(Inner {
                kind,
                message: message.into(),
                hint: None,
                source: None,
                repo: None,
                transient: false,
            }),
        }
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

    /// Says that the same call may succeed later.
    #[must_use]
    pub fn transient(mut self) -> Self {
        self.inner.transient = true;
        self
    }

    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(PostgresErrorKind::Usage, message)
    }

    /// An operating system's error on a file; `doing` completes "could not …".
    pub fn io(doing: &str, path: impl AsRef<Path>, error: std::io::Error) -> Self {
        let hint = match error.kind() {
            std::io::ErrorKind::PermissionDenied => {
                Some("run this as the user that owns the data directory, or as root")
            }
            std::io::ErrorKind::StorageFull => {
                Some("free space on that file system, then run the same command again")
            }
            _ => None,
        };
        let it = Self::new(
            PostgresErrorKind::Io,
            format!("could not {doing} {}: {error}", path.as_ref().display()),
        )
        .with_source(error);
        match hint {
            Some(hint) => it.with_hint(hint),
            None => it,
        }
    }

    pub fn kind(&self) -> PostgresErrorKind {
        self.inner.kind
    }

    /// What the repository said, where it is the repository that failed.
    pub fn repo_kind(&self) -> Option<RepoErrorKind> {
        self.inner.repo
    }

    /// What a person can do about it.
    pub fn hint(&self) -> Option<&str> {
        self.inner.hint.as_deref()
    }

    /// The same call may succeed later.
    pub fn is_transient(&self) -> bool {
        self.inner.transient
    }
}

impl fmt::Display for PostgresError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.inner.message)
    }
}

impl std::error::Error for PostgresError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.inner.source.as_ref().map(|s| s.as_ref() as &(dyn std::error::Error + 'static))
    }
}

impl From<RepoError> for PostgresError {
    fn from(error: RepoError) -> Self {
        Self {
            inner: Box::new(Inner {
                kind: PostgresErrorKind::Repo,
                message: error.to_string(),
                hint: error.hint().map(str::to_owned),
                repo: Some(error.kind()),
                transient: error.is_transient(),
                source: Some(Box::new(error)),
            }),
        }
    }
}
