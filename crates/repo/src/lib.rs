//! The repository engine: recovery data as immutable objects in one store, under one set of keys.
//!
//! What lives here: keys, chunks, packs, the index, trees, sessions and their commit point, the
//! archive, restoring and checking. What does not: any knowledge of what a source is made of
//! (crates `sources` and `postgres`) and any access to a store but through [`Store`].
//!
//! The byte layout of every object is described in `docs/format.md`.

mod archive;
mod audit;
mod authority;
mod beneath;
mod browse;
mod check;
mod chunker;
mod chunks;
mod codec;
mod copy;
mod crypto;
mod entry;
mod error;
mod fallback;
mod genuine;
mod heal;
mod id;
mod index;
#[doc(hidden)]
pub mod internals;
mod key_life;
mod keys;
mod layout;
mod maintenance;
mod opening;
mod pack;
mod parity;
mod progress;
mod repository;
mod restore;
mod session;
mod signing;
mod snapshot;
mod thaw;
mod tree;

pub use archive::slices::Slice;
pub use archive::{Archive, ArchivedFile, Pushed, push_to_all};
pub use audit::{KeyAction, KeyRecord, user};
pub use authority::change::Rotation;
pub use authority::hosts::HostKey;
pub use backstay_store::{Environment, KeyService, Store};
pub use beneath::Beneath;
pub use browse::{BrowseOptions, Browser, Children, EntryRef, FileReader, View};
pub use check::{Damage, Level, VerifyOptions, VerifyReport};
pub use codec::Compression;
pub use copy::{ArchiveCopied, Copied, CopyOptions, Original, copy, copy_archive};
pub use entry::{
    Body, Entry, EntryKind, Extent, FileContent, INLINE_LIMIT, LeafRef, Member, Metadata, Time,
    compare_paths,
};
pub use error::{RepoError, RepoErrorKind};
pub use fallback::{Fallback, Lacking, Sibling, Supplied};
pub use heal::{RepairOptions, RepairReport};
pub use id::{Kind, ObjectId};
pub use keys::age::{Identity, Recipient};
pub use keys::escrow::{Printed, Share};
pub use keys::{KeySlot, Secret, SlotKind};
pub use maintenance::{Expired, MaintenanceOptions, MaintenanceReport, Waiting};
pub use parity::ParitySet;
pub use progress::{Progress, ProgressSnapshot};
pub use repository::{InitOptions, OpenOptions, Repository, Usage};
pub use restore::{Placement, RestoreOptions, RestoreReport};
pub use session::host;
pub use session::{
    Chunking, Content, ContentError, Fate, KnownRegion, Order, Reader, Session, SessionOptions,
    TreeRoot, TreeWriter,
};
pub use snapshot::{Origin, Problem, Snapshot, SnapshotStats, SnapshotType, SourceKind};
pub use thaw::{ThawOptions, ThawReport, ThawWait};
pub use tree::{Tree, TreeIter};

/// The result of everything that touches a repository.
pub type Result<T, E = RepoError> = std::result::Result<T, E>;
