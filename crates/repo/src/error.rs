use std::fmt;

use backstay_store::{ErrorKind, KeyServiceError, StoreError};

/// What went wrong, as far as a caller must tell cases apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RepoErrorKind {
    /// The store holds no repository.
    NoRepository,
    /// A repository is there already.
    Exists,
    /// The key opens none of the repository's key slots.
    WrongKey,
    /// Somebody else is at work, or this work was given up by maintenance.
    Busy,
    /// An object is missing, altered, cut short or not what its name says.
    Damaged,
    /// There is nothing of that name.
    NotFound,
    /// Several things have that name.
    Ambiguous,
    /// Other content is stored under that name.
    Conflict,
    /// The repository needs a newer version of the program.
    Unsupported,
    /// The work was given up by its caller.
    Aborted,
    /// The store failed; see the source.
    Store,
    /// The operating system failed on something outside the repository.
    Io,
    /// What was asked for makes no sense.
    Usage,
}

/// What failed in a repository: a sentence, what to do about it, and the cause.
#[derive(Debug)]
pub struct RepoError {
    inner: Box<Inner>,
}

#[derive(Debug)]
struct Inner {
    kind: RepoErrorKind,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
    transient: bool,
}

impl RepoError {
    pub fn new(kind: RepoErrorKind, message: impl Into<String>) -> Self {
        Self {
            inner: Box::new(Inner {
                kind,
                message: message.into(),
                hint: None,
                source: None,
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

    /// An object that is not what it should be.
    pub fn damaged(object: &str, what: impl fmt::Display) -> Self {
        Self::new(RepoErrorKind::Damaged, format!("{object} is damaged: {what}")).with_hint(
            "run `backstay verify --level thorough` to learn what is affected; \
             nothing was restored from the damaged object",
        )
    }

    /// An operating system's error on a file outside the repository.
    pub fn io(doing: &str, path: impl AsRef<std::path::Path>, error: std::io::Error) -> Self {
        let mut it = Self::new(
            RepoErrorKind::Io,
            format!("could not {doing} {}: {error}", path.as_ref().display()),
        );
        if error.kind() == std::io::ErrorKind::StorageFull {
            it = it.with_hint("free space on that file system, then run the same command again");
        }
        it.with_source(error)
    }

    pub fn kind(&self) -> RepoErrorKind {
        self.inner.kind
    }

    /// What a person can do about it.
    pub fn hint(&self) -> Option<&str> {
        self.inner.hint.as_deref()
    }

    /// The same call may succeed later.
    pub fn is_transient(&self) -> bool {
        self.inner.transient
    }

    /// It is one object that cannot be used, and not the store or the work as a whole: what does not
    /// need the object can go on without it.
    pub(crate) fn is_about_an_object(&self) -> bool {
        matches!(self.kind(), RepoErrorKind::Damaged | RepoErrorKind::Unsupported)
    }

    /// Whether an object lies in an archive of the store and must be fetched first.
    pub fn is_of_an_archived_object(&self) -> bool {
        let source = self.inner.source.as_deref();
        let source = source.and_then(|source| source.downcast_ref::<StoreError>());
        source.is_some_and(|error| error.kind() == ErrorKind::Archived)
    }

    /// Whether an object is not in the store.
    pub(crate) fn is_of_a_missing_object(&self) -> bool {
        let source = self.inner.source.as_deref();
        let source = source.and_then(|source| source.downcast_ref::<StoreError>());
        source.is_some_and(StoreError::is_not_found)
    }

    /// The same error, which also says what of a tree it costs.
    pub(crate) fn about_entries_from(mut self, first: &str) -> Self {
        let which = if first.is_empty() { "all entries" } else { "the entries from" };
        self.inner.message = format!("{which} {first}: {}", self.inner.message);
        self
    }

    /// A second error that says the same, for those who wait for the same work.
    pub(crate) fn repeat(&self) -> Self {
        Self {
            inner: Box::new(Inner {
                kind: self.inner.kind,
                message: self.inner.message.clone(),
                hint: self.inner.hint.clone(),
                source: None,
                transient: self.inner.transient,
            }),
        }
    }
}

impl fmt::Display for RepoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.inner.message)
    }
}

impl std::error::Error for RepoError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.inner.source.as_ref().map(|s| s.as_ref() as &(dyn std::error::Error + 'static))
    }
}

impl From<KeyServiceError> for RepoError {
    fn from(error: KeyServiceError) -> Self {
        Self {
            inner: Box::new(Inner {
                kind: RepoErrorKind::Store,
                message: error.to_string(),
                hint: error.hint().map(str::to_owned),
                transient: error.is_transient(),
                source: Some(Box::new(error)),
            }),
        }
    }
}

impl From<StoreError> for RepoError {
    fn from(error: StoreError) -> Self {
        let kind = match error.kind() {
            // An object that the repository refers to has to be there.
            ErrorKind::NotFound | ErrorKind::Damaged => RepoErrorKind::Damaged,
            _ => RepoErrorKind::Store,
        };
        Self {
            inner: Box::new(Inner {
                kind,
                message: error.to_string(),
                hint: error.hint().map(str::to_owned),
                transient: error.is_transient(),
                source: Some(Box::new(error)),
            }),
        }
    }
}
