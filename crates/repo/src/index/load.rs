//! Reading the index.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering::Relaxed};

use backstay_store::ObjectMeta;

use super::current::replaced;
use super::object::{cache_path, forget_segments, read_segment};
use super::part::Origin;
use super::*;
use crate::authority::Authority;
use crate::crypto::{Class, Keys, epoch_of};
use crate::layout::{PACKS, Work, parse_pack_key, parse_part_key};
use crate::{RepoError, Result, Store};

/// From how many parts on they are opened by several threads.
const MANY_PARTS: usize = 8;
const THREADS: usize = 4;

/// Segments and parts while they are read.
#[derive(Default)]
struct Loading {
    /// Of segments, which are read before runs are.
    packs: Vec<PackInfo>,
    tables: Vec<(u32, Vec<PackInfo>)>,
    entries: Vec<Entry>,
    runs: Vec<Run>,
    unreadable: Vec<String>,
    /// Of packs that segments list.
    numbers: HashMap<(Work, [u8; 16]), u32>,
}

impl Loading {
    fn segment(&mut self, object: &str, plain: &[u8]) -> Result<()> {
        let segment = Segment::parse(object, plain)?;
        let entries = segment.entries();
        let mut local = Vec::with_capacity(segment.packs.len());
        for pack in segment.packs {
            let number = *self.numbers.entry((pack.work, pack.id)).or_insert_with(|| {
                self.packs.push(pack);
                self.packs.len() as u32 - 1
            });
            local.push(number);
        }
        self.entries.reserve(entries.len());
        for entry in entries {
            let Some(pack) = local.get(entry.pack as usize) else { continue };
            let location = Location { pack: *pack, offset: entry.offset, length: entry.length };
            self.entries.push(Entry { id: entry.id, location });
        }
        Ok(())
    }

    fn run(&mut self, name: &str, opened: Vec<Opened>) {
        let mut run = Run {
            name: name.to_owned(),
            parts: Vec::new(),
            firsts: Vec::new(),
            bases: Vec::new(),
            tables: Vec::new(),
        };
        for Opened { part, first_pack, packs } in opened {
            if !packs.is_empty() {
                let base = match self.tables.last() {
                    Some((first, packs)) => first + packs.len() as u32,
                    None => self.packs.len() as u32,
                };
                run.tables.push((first_pack, packs.len() as u32, base));
                self.tables.push((base, packs));
            }
            if part.len() > 0 {
                run.parts.push(part);
            }
        }
        run.parts.sort_by_key(Part::first);
        run.firsts = run.parts.iter().map(Part::first).collect();
        self.runs.push(run);
    }

    /// Notes why something is left out; passes on what is no damage.
    fn judge<T>(&mut self, read: Result<T>) -> Result<Option<T>> {
        match read {
            Ok(read) => Ok(Some(read)),
            Err(error) if error.is_about_an_object() => {
                tracing::warn!(%error, "a segment of the index is left out");
                self.unreadable.push(error.to_string());
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn finish(self, current: &Current, is_foreign: impl Fn(&PackInfo) -> bool) -> Index {
        let Self { packs: of_segments, tables, entries, mut runs, unreadable, .. } = self;
        let mut packs = vec![(0, of_segments)];
        packs.extend(tables);
        let entries = Sorted::of(entries);
        let mut base = entries.len();
        for run in &mut runs {
            for part in &run.parts {
                run.bases.push(base);
                base += part.len();
            }
        }
        let state = |pack: &PackInfo| {
            let gone = !current.gone.is_empty() && current.gone.contains(&pack.id);
            AtomicU8::new(match gone {
                true => State::Gone,
                false if is_foreign(pack) => State::Foreign,
                false => State::Unknown,
            } as u8)
        };
        let states = packs.iter().flat_map(|(_, packs)| packs).map(state).collect();
        Index { packs, states, entries, runs, unreadable, current: current.clone() }
    }
}

/// Opens parts, in the order in which they are given.
fn open_parts(
    store: &Store,
    keys: &Keys,
    cache: Option<&Path>,
    objects: &[&ObjectMeta],
) -> Vec<Result<Opened>> {
    let open = |object: &ObjectMeta| {
        let cached = cache.map(|folder| cache_path(folder, &object.key));
        Opened::fetch(keys, &object.key, object.size, &Origin { store: store.clone(), cached })
    };
    if objects.len() < MANY_PARTS {
        return objects.iter().map(|object| open(object)).collect();
    }
    let next = AtomicUsize::new(0);
    let opened = Mutex::new(Vec::with_capacity(objects.len()));
    let count = std::thread::available_parallelism().map_or(1, |count| count.get().min(THREADS));
    std::thread::scope(|scope| {
        for _ in 0..count {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Relaxed);
                    let Some(object) = objects.get(at) else { return };
                    let part = open(object);
                    opened.lock().unwrap_or_else(|e| e.into_inner()).push((at, part));
                }
            });
        }
    });
    let mut opened = opened.into_inner().unwrap_or_else(|e| e.into_inner());
    opened.sort_by_key(|(at, _)| *at);
    opened.into_iter().map(|(_, part)| part).collect()
}

impl Index {
    fn load_segments(
        store: &Store,
        keys: &Keys,
        authority: &Authority,
        cache: Option<&Path>,
        current: &Current,
    ) -> Result<Self> {
        let mut loading = Loading::default();
        loading.unreadable.extend(current.problem.clone());
        let mut parts = Vec::new();
        for object in &current.segments {
            if parse_part_key(&object.key).is_some() {
                parts.push(object);
                continue;
            }
            let added = read_segment(store, keys, cache, &object.key, object.size).and_then(
                |(epoch, plain)| {
                    if vouch(authority, keys, &object.key, epoch, &plain)? {
                        loading.segment(&object.key, &plain)?;
                    }
                    Ok(())
                },
            );
            loading.judge(added)?;
        }
        let mut runs: BTreeMap<&str, Vec<Opened>> = BTreeMap::new();
        for (object, opened) in parts.iter().zip(open_parts(store, keys, cache, &parts)) {
            if let Some(opened) = loading.judge(opened)?
                && let Some(run) = parse_part_key(&object.key)
            {
                runs.entry(run).or_default().push(opened);
            }
        }
        for (run, opened) in runs {
            loading.run(run, opened);
        }
        if let Some(folder) = cache {
            forget_segments(folder, current);
        }
        Ok(loading.finish(current, |pack| authority.is_foreign(keys, &pack.work.writer)))
    }

    /// Reads every segment that counts, from `cache` where it is there and right. Which packs are
    /// there is not looked at: who only reads finds out.
    ///
    /// A damaged segment is left out, so that what the others list can still be restored. For a
    /// writer the chunks of that segment are absent, and it stores them again.
    ///
    /// While maintenance replaces segments, the ones that a list named may be gone: then the list is
    /// read again.
    pub fn open(
        store: &Store,
        keys: &Keys,
        authority: &Authority,
        cache: Option<&Path>,
    ) -> Result<Self> {
        let mut current = Current::read(store, keys)?;
        for _ in 0..RELOADS {
            let index = Self::load_segments(store, keys, authority, cache, &current)?;
            if index.unreadable.is_empty() {
                return Ok(index);
            }
            let now = Current::read(store, keys)?;
            if now.head == current.head {
                return Ok(index);
            }
            current = now;
        }
        Err(replaced())
    }

    /// The same, and looks which packs are there. A chunk that lies in several is found in one that
    /// is there, and not in one of `avoided`, if that can be.
    pub fn load(
        store: &Store,
        keys: &Keys,
        authority: &Authority,
        cache: Option<&Path>,
        avoided: &HashSet<[u8; 16]>,
    ) -> Result<Self> {
        for _ in 0..=RELOADS {
            let index = Self::open(store, keys, authority, cache)?;
            // After the segments: a pack is durable before a segment names it.
            let listed = store.list(PACKS)?;
            // Packs go behind a new head only: with the same one, what this index names is there.
            if newest_head(store)? == index.current.head {
                index.compare(listed, avoided);
                return Ok(index);
            }
        }
        Err(replaced())
    }

    /// The index without the objects `left_out`, from the store itself.
    pub fn load_without(
        store: &Store,
        keys: &Keys,
        authority: &Authority,
        mut current: Current,
        left_out: &HashSet<String>,
    ) -> Result<Self> {
        current.segments.retain(|object| !left_out.contains(&object.key));
        let index = Self::load_segments(store, keys, authority, None, &current)?;
        index.compare(store.list(PACKS)?, &HashSet::new());
        Ok(index)
    }

    fn compare(&self, listed: Vec<ObjectMeta>, avoided: &HashSet<[u8; 16]>) {
        let short = |id: &[u8; 16]| u128::from_be_bytes(*id) as u64;
        let mut numbers: Vec<(u64, u32)> =
            self.packs().map(|(number, pack)| (short(&pack.id), number)).collect();
        numbers.sort_unstable();
        let mut there = vec![false; self.states.len()];
        for object in listed {
            let Some((work, id)) = parse_pack_key(&object.key) else { continue };
            let first = numbers.partition_point(|(other, _)| *other < short(&id));
            let same = numbers.get(first..).unwrap_or_default().iter();
            for (_, number) in same.take_while(|(other, _)| *other == short(&id)) {
                let is_it = |pack: &PackInfo| {
                    pack.id == id && pack.work == work && pack.size == object.size
                };
                if self.pack(*number).is_some_and(is_it)
                    && let Some(there) = there.get_mut(*number as usize)
                {
                    *there = true;
                }
            }
        }
        for (number, pack) in self.packs() {
            let is_avoided = avoided.contains(&pack.id);
            if !there.get(number as usize).copied().unwrap_or_default() {
                // The rest of what maintenance removes goes while this reads.
                if !is_avoided {
                    tracing::warn!(
                        pack = pack.key(),
                        "missing or cut short; what it holds is stored again"
                    );
                }
                self.set(number, State::Missing);
            } else if self.state(number) == State::Foreign {
                // It stays that.
            } else if is_avoided {
                self.set(number, State::Avoided);
            } else {
                self.set(number, State::There);
            }
        }
    }

    /// An index of one segment.
    pub fn of_segment(object: &str, plain: &[u8]) -> Result<Self> {
        let mut loading = Loading::default();
        loading.segment(object, plain)?;
        Ok(loading.finish(&Current::default(), |_| false))
    }
}

/// Whether a segment counts: it is of whom its name says, the writer of its session, or somebody with
/// the root key, who alone merges them.
fn vouch(
    authority: &Authority,
    keys: &Keys,
    object: &str,
    epoch: u32,
    plain: &[u8],
) -> Result<bool> {
    let segment = Segment::parse(object, plain)?;
    let (body, signature) = (segment.body, segment.signature);
    let Some(work) = Work::from_index_key(object) else {
        return match signature {
            Some(signature) => keys.owner_wrote(epoch, object, body, signature).map(|()| true),
            None => Err(RepoError::damaged(object, "nobody has signed it")),
        };
    };
    let counts = authority.vouch(keys, object, &work.writer, epoch, body, signature)?;
    if authority.is_host(&work.writer) && segment.packs.iter().any(|pack| pack.work != work) {
        return Err(RepoError::damaged(object, "it lists a pack of somebody else"));
    }
    Ok(counts)
}

/// Whether somebody has signed a segment.
pub(crate) fn is_signed(object: &str, plain: &[u8]) -> Result<bool> {
    Ok(Segment::parse(object, plain)?.signature.is_some())
}

/// Opens what is not looked at when a part is: every block.
pub(crate) fn check_part(keys: &Keys, object: &str, body: bytes::Bytes) -> Result<()> {
    let size = body.len() as u64;
    let source = part::Source::of(body);
    Opened::read(keys, object, size, source)?.part.check()
}

/// Whether a segment of the store opens and was written by whom its name says.
pub(crate) fn check_segment(
    authority: &Authority,
    keys: &Keys,
    object: &str,
    body: &[u8],
) -> Result<()> {
    let plain = open_object(keys, Class::Index, object, body)?;
    vouch(authority, keys, object, epoch_of(body), &plain).map(drop)
}

/// A part of a run that lists nothing.
pub(crate) fn empty_part(keys: &Keys, id: [u8; 16], object: &str) -> bytes::Bytes {
    Part::seal(keys, id, object, 0, &[], &[])
}

/// For [`internals`](crate::internals): seals what may be no part of a run as one, and reads it.
pub(crate) fn opens_forged(plain: &[u8]) -> Option<usize> {
    let keys = Keys::derive(&crate::crypto::RootKey::from_bytes([3; 32]));
    let body = part::forge(&keys, "a part", plain);
    let source = part::Source::of(body.clone());
    let opened = Opened::read(&keys, "a part", body.len() as u64, source).ok()?;
    opened.part.each(&[7; 16], |_, _| {}).ok()?;
    opened.part.iter().try_fold(0, |entries, entry| entry.ok().map(|_| entries + 1))
}

/// For [`internals`](crate::internals): what [`opens_forged`] takes for a part that is right.
pub(crate) fn sample_of_part(packs: &[PackInfo]) -> Vec<u8> {
    let entry = |n: u8| segment::RawEntry { id: [n; 16], pack: 0, offset: n.into(), length: 90 };
    let entries: Vec<_> = (1..60).map(entry).collect();
    part::sections(packs, &entries)
}

/// For [`internals`](crate::internals).
pub(crate) fn parses_root(plain: &[u8]) -> bool {
    part::Root::parse(plain).is_some()
}
