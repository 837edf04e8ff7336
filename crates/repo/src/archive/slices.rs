//! Slices: pieces of a segment that is still being written.
//!
//! `<segment>.<start>-<end>.slice` beside the segment, start and end being offsets within it in eight
//! hexadecimal digits, end not included. A slice is stored as every file of the archive is. Slices
//! may overlap, and where they do they say the same. They stand for the segment until the whole of it
//! is there; from then on they are worth nothing, and whoever may removes them.

use super::{Archive, MAX_SIZE, Pushed};
use crate::layout::WAL;
use crate::{RepoError, RepoErrorKind, Result};

/// Where a slice lies within its segment. Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slice {
    pub start: u32,
    pub end: u32,
}

impl Slice {
    /// What the slice of `segment` is called.
    pub fn name(self, segment: &str) -> String {
        format!("{segment}.{:08X}-{:08X}.slice", self.start, self.end)
    }

    /// The segment and the place that a slice's name says; none for any other name.
    pub fn parse(name: &str) -> Option<(&str, Self)> {
        let (segment, rest) = name.split_at_checked(24)?;
        let (start, end) = rest.strip_prefix('.')?.strip_suffix(".slice")?.split_once('-')?;
        let number = |digits: &str| {
            let plain =
                digits.len() == 8 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
            u32::from_str_radix(digits, 16).ok().filter(|_| plain)
        };
        let it = Self { start: number(start)?, end: number(end)? };
        (it.start < it.end && u64::from(it.end) <= MAX_SIZE).then_some((segment, it))
    }
}

impl Archive {
    /// Stores a slice of `segment` that begins at `start`; durable when this returns.
    pub fn push_slice(&self, segment: &str, start: u32, content: &[u8]) -> Result<Pushed> {
        self.push(&slice_at(segment, start, content)?.name(segment), content)
    }

    /// The slices of a segment, by start.
    pub fn slices(&self, segment: &str) -> Result<Vec<Slice>> {
        let key = self.key(segment)?;
        let mut slices = Vec::new();
        for object in self.repository().store().list(&format!("{key}."))? {
            let Some(name) = object.key.rsplit('/').next() else { continue };
            if let Some((of, slice)) = Slice::parse(name)
                && of == segment
                && self.key(name)? == object.key
            {
                slices.push(slice);
            }
        }
        slices.sort_unstable();
        Ok(slices)
    }

    /// The beginning of a segment as its slices give it; none where they do not reach its beginning.
    ///
    /// # Errors
    /// A slice is damaged, or two say different things of the same bytes.
    pub fn assemble(&self, segment: &str) -> Result<Option<Vec<u8>>> {
        let mut left = self.slices(segment)?;
        let mut content: Vec<u8> = Vec::new();
        loop {
            let covered = content.len() as u64;
            // The one that leads furthest, so that few are read.
            let next = left
                .iter()
                .filter(|slice| u64::from(slice.start) <= covered && u64::from(slice.end) > covered)
                .max_by_key(|slice| slice.end)
                .copied();
            let Some(slice) = next else { break };
            left.retain(|other| *other != slice);
            let name = slice.name(segment);
            // Removed meanwhile: then the whole segment came, or a longer slice.
            let Some(bytes) = self.fetch(&name)? else { continue };
            if bytes.len() != (slice.end - slice.start) as usize {
                return Err(RepoError::damaged(
                    &self.key(&name)?,
                    "it is not as long as its name says",
                ));
            }
            let (known, new) = bytes.split_at((covered - u64::from(slice.start)) as usize);
            if content.get(slice.start as usize..) != Some(known) {
                return Err(RepoError::new(
                    RepoErrorKind::Conflict,
                    format!("the slices of {segment} say different things of the same bytes"),
                )
                .with_hint("two clusters with the same system identifier stream to one archive"));
            }
            content.extend_from_slice(new);
        }
        Ok((!content.is_empty()).then_some(content))
    }

    /// Removes those slices of a segment that `superseded` says; all of them only where the whole
    /// segment is there. Answers how many are gone.
    pub fn remove_slices(
        &self,
        segment: &str,
        superseded: impl Fn(Slice) -> bool,
    ) -> Result<usize> {
        let mut removed = 0;
        let whole = self.contains(segment)?;
        for slice in self.slices(segment)? {
            if whole || superseded(slice) {
                self.repository().store().delete(&self.key(&slice.name(segment))?)?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Removes every slice that says what the whole segment in the archive says: what receivers left
    /// that were ended, or may not remove. Answers how many are gone.
    ///
    /// Where the segment cannot be read, or says something else, its slices may be all that there is
    /// of it, and stay: archived files are signed by nobody.
    pub fn remove_superseded(&self) -> Result<usize> {
        let store = self.repository().store();
        let mut removed = 0;
        let mut last: Option<(String, Option<Vec<u8>>)> = None;
        for file in self.list(None)? {
            let Some((segment, slice)) = Slice::parse(&file.name) else { continue };
            if last.as_ref().is_none_or(|(of, _)| of != segment) {
                last = Some((segment.to_owned(), self.kept(segment)?));
            }
            let Some((_, Some(whole))) = &last else { continue };
            let key = self.key(&file.name)?;
            if let Some(bytes) = self.kept(&file.name)?
                && whole.get(slice.start as usize..slice.end as usize) != Some(&bytes[..])
            {
                tracing::warn!(slice = key, "it stays: the whole segment says something else");
                continue;
            }
            store.delete(&key)?;
            removed += 1;
        }
        Ok(removed)
    }

    /// The content of a file; none of what is not there, or is damaged.
    fn kept(&self, name: &str) -> Result<Option<Vec<u8>>> {
        match self.fetch(name) {
            Err(error) if error.is_about_an_object() => {
                tracing::warn!(%error, "slices cannot be compared with it");
                Ok(None)
            }
            read => read,
        }
    }
}

/// The clusters that have an archive in this repository.
pub(crate) fn systems(repository: &crate::Repository) -> Result<Vec<u64>> {
    let mut systems: Vec<u64> = Vec::new();
    for object in repository.store().list(WAL)? {
        let id = object.key.strip_prefix(WAL).and_then(|rest| rest.split('/').next()?.parse().ok());
        if let Some(id) = id
            && !systems.contains(&id)
        {
            systems.push(id);
        }
    }
    Ok(systems)
}

fn slice_at(segment: &str, start: u32, content: &[u8]) -> Result<Slice> {
    let end = u64::from(start) + content.len() as u64;
    match u32::try_from(end) {
        Ok(end) if end > start && u64::from(end) <= MAX_SIZE && segment.len() == 24 => {
            Ok(Slice { start, end })
        }
        _ => Err(RepoError::new(
            RepoErrorKind::Usage,
            format!("{} bytes from {start} on are no slice of {segment}", content.len()),
        )),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Environment, InitOptions, Repository, Secret, Store};

    const NAME: &str = "0000000A000000010000002F";

    fn archive() -> Archive {
        let secret = Secret::key_file([7; 32]).unwrap();
        let env = Environment::seeded(3);
        let repository =
            Repository::init(Store::memory(), env, &secret, InitOptions::default()).unwrap();
        repository.archive(42)
    }

    fn bytes(range: std::ops::Range<usize>) -> Vec<u8> {
        range.map(|at| (at * 7 % 251) as u8).collect()
    }

    #[test]
    fn slices_give_the_beginning_up_to_the_first_hole() {
        let archive = archive();
        assert_eq!(archive.assemble(NAME).unwrap(), None);
        for range in [0..100, 100..130, 50..300, 400..500] {
            let pushed = archive.push_slice(NAME, range.start as u32, &bytes(range)).unwrap();
            assert!(matches!(pushed, Pushed::New { .. }));
        }
        assert_eq!(archive.assemble(NAME).unwrap().unwrap(), bytes(0..300));
        archive.push_slice(NAME, 300, &bytes(300..400)).unwrap();
        assert_eq!(archive.assemble(NAME).unwrap().unwrap(), bytes(0..500));
        // Those of another segment are not asked.
        assert_eq!(archive.assemble("0000000A0000000100000030").unwrap(), None);
        assert!(archive.push_slice(NAME, 5, b"").is_err());
        assert!(archive.push_slice("0000000A.history", 5, b"x").is_err());
    }

    #[test]
    fn slices_are_removed_when_the_whole_is_there_and_not_before() {
        let archive = archive();
        archive.push_slice(NAME, 0, &bytes(0..100)).unwrap();
        archive.push_slice(NAME, 100, &bytes(100..200)).unwrap();
        assert_eq!(archive.remove_superseded().unwrap(), 0);
        assert_eq!(archive.remove_slices(NAME, |_| false).unwrap(), 0);
        archive.push_slice(NAME, 0, &bytes(0..200)).unwrap();
        let rolled = Slice { start: 0, end: 200 };
        assert_eq!(archive.remove_slices(NAME, |slice| slice != rolled).unwrap(), 2);
        assert_eq!(archive.assemble(NAME).unwrap().unwrap(), bytes(0..200));
        archive.push(NAME, &bytes(0..300)).unwrap();
        assert_eq!(archive.remove_superseded().unwrap(), 1);
        assert_eq!(archive.list(None).unwrap().len(), 1);
        assert_eq!(systems(archive.repository()).unwrap(), [42]);
    }

    #[test]
    fn slices_stay_where_the_whole_says_something_else_or_nothing() {
        let archive = archive();
        let store = archive.repository().store();
        let (key, slice) = (archive.key(NAME).unwrap(), Slice { start: 100, end: 200 });
        archive.push_slice(NAME, 100, &bytes(100..200)).unwrap();
        archive.push(NAME, &[7; 300]).unwrap();
        assert_eq!(archive.remove_superseded().unwrap(), 0);
        store.delete(&key).unwrap();
        store.create(&key, backstay_store::Bytes::from_static(b"damage")).unwrap();
        assert_eq!(archive.remove_superseded().unwrap(), 0);
        assert_eq!(archive.slices(NAME).unwrap(), [slice]);
        store.delete(&key).unwrap();
        archive.push(NAME, &bytes(0..150)).unwrap();
        assert_eq!(archive.remove_superseded().unwrap(), 0, "it has less");
        store.delete(&key).unwrap();
        archive.push(NAME, &bytes(0..300)).unwrap();
        assert_eq!(archive.remove_superseded().unwrap(), 1);
    }

    #[test]
    fn slices_that_contradict_each_other_or_their_name_are_not_used() {
        let archive = archive();
        archive.push_slice(NAME, 0, &bytes(0..100)).unwrap();
        archive.push_slice(NAME, 50, &bytes(0..100)).unwrap();
        assert_eq!(archive.assemble(NAME).unwrap_err().kind(), RepoErrorKind::Conflict);
        let other = "0000000A0000000100000030";
        archive.push(&Slice { start: 0, end: 10 }.name(other), b"short").unwrap();
        assert_eq!(archive.assemble(other).unwrap_err().kind(), RepoErrorKind::Damaged);
    }

    proptest! {
        #[test]
        fn names_are_read_back_and_nothing_else_is(start: u32, end: u32, text in ".{0,60}") {
            let slice = Slice { start, end };
            let good = start < end && u64::from(end) <= MAX_SIZE;
            let name = slice.name(NAME);
            prop_assert_eq!(Slice::parse(&name), good.then_some((NAME, slice)));
            if let Some((segment, slice)) = Slice::parse(&text) {
                prop_assert_eq!(slice.name(segment), text);
            }
        }
    }
}
