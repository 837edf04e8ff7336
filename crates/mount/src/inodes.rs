//! Numbers for what the kernel knows. A number follows from what it stands for, so that the same
//! file has the same one whenever it is asked for, however often it was forgotten in between.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use backstay_repo::{Snapshot, View};

/// The root of the mount.
pub const ROOT: u64 = 1;

/// A snapshot whose files were asked for.
pub struct Opened {
    pub snapshot: Arc<Snapshot>,
    pub view: View,
    /// Its path in the mount, for people.
    pub shown: String,
}

/// What a number stands for.
#[derive(Clone)]
pub enum Place {
    /// Something above the files, by its path in the mount.
    Upper(String),
    /// A path of a snapshot; the empty one is its root.
    Entry(Arc<Opened>, Arc<[u8]>),
}

impl Place {
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Upper(a), Self::Upper(b)) => a == b,
            (Self::Entry(a, x), Self::Entry(b, y)) => a.snapshot.id == b.snapshot.id && x == y,
            _ => false,
        }
    }

    /// The number it has unless another place came to it first.
    fn number(&self) -> u64 {
        let mut hasher = blake3::Hasher::new();
        match self {
            Self::Upper(path) if path.is_empty() => return ROOT,
            Self::Upper(path) => hasher.update(b"upper\0").update(path.as_bytes()),
            Self::Entry(opened, path) => {
                hasher.update(opened.snapshot.id.as_bytes()).update(b"\0").update(path)
            }
        };
        let mut number = [0; 8];
        hasher.finalize_xof().fill(&mut number);
        // Signed numbers are not what every program expects here.
        (u64::from_le_bytes(number) >> 1).max(ROOT + 1)
    }
}

struct Known {
    place: Place,
    /// How often the kernel was told of it and has not forgotten it.
    told: u64,
}

#[derive(Default)]
pub struct Inodes {
    known: Mutex<HashMap<u64, Known>>,
}

impl Inodes {
    fn known(&self) -> MutexGuard<'_, HashMap<u64, Known>> {
        self.known.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// What a number stands for that the kernel was told.
    pub fn place(&self, number: u64) -> Option<Place> {
        if number == ROOT {
            return Some(Place::Upper(String::new()));
        }
        self.known().get(&number).map(|known| known.place.clone())
    }

    /// The number of a place that is told the kernel.
    pub fn tell(&self, place: &Place) -> u64 {
        let (number, mut known) = self.free(place);
        known.entry(number).or_insert_with(|| Known { place: place.clone(), told: 0 }).told += 1;
        number
    }

    /// The number of a place, which is only shown.
    pub fn show(&self, place: &Place) -> u64 {
        self.free(place).0
    }

    /// Two places that have the same number are rarer than damaged memory; the second gets the next
    /// one.
    fn free(&self, place: &Place) -> (u64, MutexGuard<'_, HashMap<u64, Known>>) {
        let known = self.known();
        let mut number = place.number();
        while known.get(&number).is_some_and(|other| !other.place.is(place)) {
            number = (number + 1).max(ROOT + 1);
        }
        (number, known)
    }

    pub fn forget(&self, number: u64, times: u64) {
        let mut all = self.known();
        let Some(known) = all.get_mut(&number) else { return };
        known.told = known.told.saturating_sub(times);
        if known.told == 0 {
            all.remove(&number);
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.known().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_comes_back_after_it_was_forgotten() {
        let inodes = Inodes::default();
        let place = Place::Upper("sources/etc".into());
        let number = inodes.tell(&place);
        assert_eq!(inodes.tell(&place), number);
        inodes.forget(number, 1);
        assert!(inodes.place(number).is_some_and(|found| found.is(&place)));
        inodes.forget(number, 1);
        assert!(inodes.place(number).is_none());
        assert_eq!(inodes.len(), 0);
        assert_eq!(inodes.show(&place), number);
        assert_eq!(inodes.len(), 0);
        assert_ne!(inodes.show(&Place::Upper("sources".into())), number);
        assert!(inodes.place(ROOT).is_some());
    }
}
