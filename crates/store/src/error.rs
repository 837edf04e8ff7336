use std::fmt;

/// What went wrong, as far as a caller must tell cases apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The store said that there is no such object. Never used for anything unknown.
    NotFound,
    /// The object exists already and was left as it is.
    AlreadyExists,
    /// The store refused: credentials or permissions.
    Denied,
    /// The store keeps the object until a moment that has not come, or until a hold is lifted.
    Locked,
    /// The store has put it into an archive, out of which it must be fetched first.
    Archived,
    /// No space, or a quota is used up.
    NoSpace,
    /// The store did not answer, or asked to be tried again.
    Transient,
    /// The answer was not what was asked for: too short, too long, unreadable.
    Damaged,
    /// The address or the options cannot be used.
    Configuration,
    /// Anything else.
    Other,
}

/// An operation on a store that failed: what was being done, to which object, and why.
#[derive(Debug)]
pub struct StoreError {
    kind: ErrorKind,
    doing: &'static str,
    key: String,
    detail: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl StoreError {
    /// `doing` completes the sentence "could not …": `read`, `create`, `list`.
    pub fn new(kind: ErrorKind, doing: &'static str, key: impl Into<String>) -> Self {
        Self { kind, doing, key: key.into(), detail: String::new(), source: None }
    }

    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = detail.into();
        self
    }

    #[must_use]
    pub fn with_source(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Maps an error of the operating system.
    pub fn from_io(doing: &'static str, key: impl Into<String>, error: std::io::Error) -> Self {
        use std::io::ErrorKind as Io;
        // EIO: a sector that cannot be read.
        let unreadable = doing == "read" && error.raw_os_error() == Some(5);
        let kind = match error.kind() {
            _ if unreadable => ErrorKind::Damaged,
            Io::NotFound => ErrorKind::NotFound,
            Io::AlreadyExists => ErrorKind::AlreadyExists,
            Io::PermissionDenied | Io::ReadOnlyFilesystem => ErrorKind::Denied,
            Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge => ErrorKind::NoSpace,
            Io::TimedOut
            | Io::Interrupted
            | Io::ConnectionRefused
            | Io::ConnectionReset
            | Io::HostUnreachable
            | Io::NetworkUnreachable
            | Io::ConnectionAborted => ErrorKind::Transient,
            _ => ErrorKind::Other,
        };
        Self::new(kind, doing, key).with_source(error)
    }

    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What the store said, without secrets.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// The key of the object, as given by the caller.
    pub fn key(&self) -> &str {
        &self.key
    }

    pub fn is_not_found(&self) -> bool {
        self.kind == ErrorKind::NotFound
    }

    pub fn is_already_exists(&self) -> bool {
        self.kind == ErrorKind::AlreadyExists
    }

    /// The same call may succeed later.
    pub fn is_transient(&self) -> bool {
        self.kind == ErrorKind::Transient
    }

    /// What a person can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self.kind {
            ErrorKind::Denied => Some(
                "check the credentials, and that they or the file's owner allow this operation",
            ),
            ErrorKind::Locked => Some("it can be removed when its lock has run out"),
            ErrorKind::Archived => {
                Some("run `backstay thaw SNAPSHOT`, and again until it says that all can be read")
            }
            ErrorKind::NoSpace => {
                Some("free space in the store; nothing that was there before is affected")
            }
            ErrorKind::Transient => Some("the store did not answer; try again when it does"),
            ErrorKind::Damaged => Some("run `backstay verify --level standard`"),
            _ => None,
        }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "could not {}", self.doing)?;
        if !self.key.is_empty() {
            write!(f, " {}", self.key)?;
        }
        let reason = match self.kind {
            ErrorKind::NotFound => "no such object",
            ErrorKind::AlreadyExists => "it exists already",
            ErrorKind::Denied => "access denied",
            ErrorKind::Locked => "the store keeps it",
            ErrorKind::Archived => "it lies in an archive and must be fetched first",
            ErrorKind::NoSpace => "no space left in the store",
            ErrorKind::Transient => "the store did not answer",
            ErrorKind::Damaged => "the object is damaged",
            ErrorKind::Configuration => "the address or its options cannot be used",
            ErrorKind::Other => "",
        };
        if !reason.is_empty() {
            write!(f, ": {reason}")?;
        }
        if !self.detail.is_empty() {
            write!(f, ": {}", self.detail)?;
        } else if let Some(source) = &self.source {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

impl std::error::Error for StoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|s| s.as_ref() as &(dyn std::error::Error + 'static))
    }
}
