//! Escrow: a slot whose secret is shared among people, so that several of them together open the
//! repository and none alone.
//!
//! The secret is made for the slot and forgotten; what the holders share is not the root key. So a
//! set of shares is withdrawn by removing its slot. The slot keeps a hash of each share: a share that
//! was forged, with all its checks right, is named instead of spoiling the result.

use backstay_store::Environment;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::printed::{self, Content};
use super::shamir::{self, LENGTH, Point};
use crate::crypto::{derive, equal};
use crate::id::{hex, unhex};
use crate::{RepoError, RepoErrorKind, Result};

/// One share of an escrow set. Never printed, but by [`text`](Self::text).
#[derive(Clone)]
pub struct Share {
    /// The beginning of the repository's id.
    repository: [u8; 8],
    /// The slot that the set opens.
    slot: [u8; 8],
    threshold: u8,
    point: Point,
}

impl std::fmt::Debug for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Share({} of set {})", self.number(), self.set())
    }
}

impl Share {
    /// Counted from 1.
    pub fn number(&self) -> u8 {
        self.point.x
    }

    /// How many of the set are needed.
    pub fn threshold(&self) -> u8 {
        self.threshold
    }

    /// The id of the set, which is that of its slot.
    pub fn set(&self) -> String {
        hex(&self.slot)
    }

    /// The first 16 digits of the repository's id.
    pub fn repository(&self) -> String {
        hex(&self.repository)
    }

    /// For [`internals`](crate::internals).
    pub(crate) fn renamed(&self, name: &Self) -> Self {
        let Self { repository, slot, threshold, .. } = *name;
        Self { repository, slot, threshold, point: self.point.clone() }
    }

    fn payload(&self) -> Zeroizing<Vec<u8>> {
        let mut payload = Zeroizing::new(Vec::with_capacity(50));
        payload.extend_from_slice(&self.repository);
        payload.extend_from_slice(&self.slot);
        payload.extend_from_slice(&[self.threshold, self.point.x]);
        payload.extend_from_slice(self.point.y.as_slice());
        payload
    }

    fn of_payload(payload: &[u8]) -> Option<Self> {
        let (repository, rest) = payload.split_first_chunk::<8>()?;
        let (slot, rest) = rest.split_first_chunk::<8>()?;
        let ([threshold, x], rest) = rest.split_first_chunk::<2>()?;
        let y: [u8; LENGTH] = rest.try_into().ok()?;
        (*x > 0 && *threshold > 0).then(|| Self {
            repository: *repository,
            slot: *slot,
            threshold: *threshold,
            point: Point { x: *x, y: Zeroizing::new(y) },
        })
    }

    /// The share as it is printed: numbered lines of groups.
    pub fn text(&self) -> Zeroizing<String> {
        printed::lines(&printed::groups(Content::Share, &self.payload()))
    }

    /// The share in one line, as it is put into a QR code.
    pub fn line(&self) -> Zeroizing<String> {
        in_one_line(&printed::groups(Content::Share, &self.payload()))
    }
}

pub(crate) fn in_one_line(groups: &[Zeroizing<String>]) -> Zeroizing<String> {
    let mut line = Zeroizing::new(String::with_capacity(groups.len() * 6));
    for (at, group) in groups.iter().enumerate() {
        if at > 0 {
            line.push('-');
        }
        line.push_str(group);
    }
    line
}

/// What somebody typed or scanned.
#[derive(Debug)]
pub enum Printed {
    Share(Share),
    /// The content of a key file.
    KeyFile(crate::Secret),
}

impl Printed {
    /// Reads shares and printed keys, with blank lines or lines that begin with `#` between them.
    ///
    /// # Errors
    /// Usage, with the number of every group that is mistyped.
    pub fn read(text: &str) -> Result<Vec<Self>> {
        printed::read(text)?
            .into_iter()
            .map(|(content, payload)| match content {
                Content::Share => Share::of_payload(&payload).map(Self::Share).ok_or_else(|| {
                    RepoError::new(RepoErrorKind::Usage, "this was never a share of a set")
                        .with_hint("it was not printed by this program")
                }),
                Content::KeyFile => crate::Secret::key_file(payload.to_vec()).map(Self::KeyFile),
            })
            .collect()
    }

    /// A key file as it is printed: numbered lines of groups, and all in one line.
    ///
    /// # Errors
    /// Usage, when it is not one of 32 bytes, as `backstay init` makes them.
    pub fn key_file(content: &[u8]) -> Result<(Zeroizing<String>, Zeroizing<String>)> {
        if content.len() != 32 {
            return Err(RepoError::new(
                RepoErrorKind::Usage,
                format!("a key file of {} bytes cannot be printed", content.len()),
            )
            .with_hint("add one of 32 bytes: `backstay key add --new-key-file FILE`"));
        }
        let groups = printed::groups(Content::KeyFile, content);
        Ok((printed::lines(&groups), in_one_line(&groups)))
    }
}

/// What a slot says of its set.
#[derive(Serialize, Deserialize, Clone)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct EscrowSet {
    pub shares: u8,
    pub threshold: u8,
    /// A hash of each share, in their order.
    pub hashes: Vec<String>,
}

fn hash(salt: &[u8; 32], point: &Point) -> [u8; 32] {
    derive(point.y.as_slice(), salt, &[b"backstay v1 escrow share ", &[point.x]])
}

/// A new set of shares of `secret` for the slot `slot`.
pub(crate) fn share_out(
    env: &Environment,
    repository: &[u8; 16],
    slot: [u8; 8],
    salt: &[u8; 32],
    secret: &[u8; LENGTH],
    shares: u8,
    threshold: u8,
) -> Result<(EscrowSet, Vec<Share>)> {
    if threshold < 2 || shares < threshold {
        let what = if shares < threshold {
            format!("{threshold} of {shares} shares could never come together")
        } else {
            format!("with a threshold of {threshold} a single share would open the repository")
        };
        return Err(RepoError::new(RepoErrorKind::Usage, what).with_hint(
            "say how many there are and how many are needed: --shares 5 --threshold 3",
        ));
    }
    let points = shamir::split(secret, threshold, shares, env);
    let set = EscrowSet {
        shares,
        threshold,
        hashes: points.iter().map(|point| hex(&hash(salt, point))).collect(),
    };
    let [first, ..] = repository.as_chunks::<8>().0 else { unreachable!("16 bytes") };
    let shares = points
        .into_iter()
        .map(|point| Share { repository: *first, slot, threshold, point })
        .collect();
    Ok((set, shares))
}

/// The slot that shares are of.
///
/// # Errors
/// Usage, when they are not of one set of this repository, or too few.
pub(crate) fn slot_of(shares: &[Share], repository: &[u8; 16]) -> Result<String> {
    let wrong = |what: String, hint: &str| {
        RepoError::new(RepoErrorKind::Usage, what).with_hint(hint.to_owned())
    };
    let Some(first) = shares.first() else {
        return Err(wrong("no share is there".to_owned(), "give the shares of one set"));
    };
    if let Some(share) = shares.iter().find(|share| share.repository != repository[..8]) {
        return Err(wrong(
            format!(
                "share {} is of the repository {}…, and this is {}…",
                share.number(),
                share.repository(),
                hex(&repository[..8]),
            ),
            "choose that repository with --repository, or find the right shares",
        ));
    }
    if let Some(other) = shares.iter().find(|share| share.slot != first.slot) {
        return Err(wrong(
            format!(
                "share {} is of the set {}, and share {} of the set {}",
                first.number(),
                first.set(),
                other.number(),
                other.set()
            ),
            "only shares of one set go together",
        ));
    }
    let mut numbers: Vec<u8> = shares.iter().map(Share::number).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let threshold = shares.iter().map(Share::threshold).max().unwrap_or(first.threshold);
    let missing = usize::from(threshold).saturating_sub(numbers.len());
    if missing > 0 {
        let known: Vec<String> = numbers.iter().map(u8::to_string).collect();
        return Err(wrong(
            format!(
                "{threshold} shares are needed, and {} {}: {missing} more {}",
                numbers.len(),
                if numbers.len() == 1 { "is there" } else { "are there" },
                if missing == 1 { "is missing" } else { "are missing" },
            ),
            &format!(
                "of this set there are the shares {}; ask the other holders",
                known.join(", ")
            ),
        ));
    }
    Ok(first.set())
}

/// The secret of a slot from its shares.
///
/// # Errors
/// Wrong key, with the share that is not one of the set.
pub(crate) fn secret_of(
    shares: &[Share],
    set: &EscrowSet,
    salt: &[u8; 32],
) -> Result<Zeroizing<[u8; LENGTH]>> {
    for share in shares {
        let genuine = usize::from(share.point.x)
            .checked_sub(1)
            .and_then(|at| set.hashes.get(at))
            .and_then(|hash| unhex::<32>(hash))
            .is_some_and(|wanted| equal(&wanted, &hash(salt, &share.point)));
        if !genuine {
            return Err(RepoError::new(
                RepoErrorKind::WrongKey,
                format!(
                    "share {} is forged: it is none of the set {}",
                    share.number(),
                    share.set()
                ),
            )
            .with_hint("leave it out and give another one, and find out who made it"));
        }
    }
    let combined = combined(shares);
    let mut secret = Zeroizing::new([0; LENGTH]);
    secret.copy_from_slice(&combined);
    Ok(secret)
}

/// For [`internals`](crate::internals): puts shares together that nobody has checked, and checks them
/// against a set that is none of theirs.
pub(crate) fn combines_for_fuzzing(shares: &[Share]) {
    let _ = combined(shares);
    let set = EscrowSet { shares: 3, threshold: 2, hashes: vec!["ab".repeat(32); 3] };
    assert!(shares.is_empty() || secret_of(shares, &set, &[5; 32]).is_err());
}

/// What shares make together, each counted once.
pub(super) fn combined(shares: &[Share]) -> Zeroizing<Vec<u8>> {
    let mut points: Vec<Point> = Vec::new();
    for share in shares {
        if points.iter().all(|point| point.x != share.point.x) {
            points.push(share.point.clone());
        }
    }
    Zeroizing::new(shamir::combine(&points).to_vec())
}
