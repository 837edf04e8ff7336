//! Snapshots as a read-only file system, by way of FUSE.
//!
//! What lives here: the folders in which snapshots are found ([`catalog`]), numbers for what the
//! kernel knows ([`inodes`]), and the answers to its questions ([`filesystem`]). What does not:
//! finding entries and reading ranges of files, which is `repo::Browser`; nothing here opens an
//! object.
//!
//! ```text
//! sources/<source>/<time>/…          the files of a snapshot
//! sources/<source>/latest            → the newest one
//! snapshots/<id>                     → ../sources/<source>/<time>
//! at/<day>/<source>                  → what was newest at the end of that day
//! ```
//!
//! A snapshot never changes, so the kernel may keep what it was told of its files. What lies above
//! them is asked for again and again, and follows the repository.
//!
//! It is made for Linux; elsewhere the crate is empty.
#![cfg(target_os = "linux")]

mod attributes;
mod catalog;
mod error;
mod filesystem;
mod inodes;
mod listing;
mod mounting;
mod names;

pub use error::MountError;
pub use filesystem::OnProblem;
pub use mounting::{Ended, MountOptions, Mounted, mount};
