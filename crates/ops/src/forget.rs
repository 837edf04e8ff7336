//! Forgetting snapshots, with the care that a mistake would need.

use backstay_repo::{RepoErrorKind, Repository, Snapshot};

use crate::config::RepositoryConfig;
use crate::error::{Error, ErrorKind};
use crate::{Context, Result};

/// A snapshot that is forgotten, or would be.
#[derive(Debug)]
pub struct Forgotten {
    /// The repository's name in the configuration.
    pub repository: String,
    pub id: String,
    /// None where it could not be read.
    pub snapshot: Option<Snapshot>,
}

/// What is asked.
#[derive(Debug, Clone, Default)]
pub struct ForgetRequest {
    /// Ids of snapshots, or beginnings of them.
    pub ids: Vec<String>,
    /// Also the newest complete snapshot of a source.
    pub even_newest: bool,
    pub dry_run: bool,
}

/// Forgets snapshots by their ids, in whichever configured repository each is. All are looked up
/// before the first is forgotten.
///
/// # Errors
/// `NotFound` and `Ambiguous` for an id; `Usage` for the newest complete snapshot of a source unless
/// the request says so.
pub fn forget(context: &Context, request: &ForgetRequest) -> Result<Vec<Forgotten>> {
    let mut places = Places::new(context)?;
    let mut chosen: Vec<(usize, Forgotten)> = Vec::new();
    for id in &request.ids {
        if id.len() < 4 || !id.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(Error::usage(
                format!("{id:?} is no id of a snapshot"),
                "name snapshots by the ids that `backstay list` shows, four digits at least",
            ));
        }
        let (place, one) = places.look_up(id)?;
        // Somebody who names it twice wants it to go once.
        if !chosen.iter().any(|(other, there)| *other == place && there.id == one.id) {
            chosen.push((place, one));
        }
    }
    for (place, one) in &chosen {
        let Some(snapshot) = one.snapshot.as_ref().filter(|_| !request.even_newest) else {
            continue;
        };
        let goes = |id: &str| chosen.iter().any(|(_, one)| one.id == id);
        let left = places.snapshots(*place).iter().any(|other| {
            other.source == snapshot.source
                && other.problems.is_empty()
                && other.time >= snapshot.time
                && !goes(&other.id)
        });
        if snapshot.problems.is_empty() && !left {
            return Err(Error::usage(
                format!(
                    "{} is the newest complete snapshot of {} that would be left in {}",
                    snapshot.short_id(),
                    snapshot.source,
                    one.repository
                ),
                "make a newer one first, or say --even-newest; nothing was forgotten",
            ));
        }
    }
    if !request.dry_run {
        for (number, place) in places.opened.iter().enumerate() {
            let here = chosen.iter().filter(|(of, _)| *of == number);
            let ids: Vec<&str> = here.map(|(_, one)| one.id.as_str()).collect();
            if let Some(place) = place.as_ref().filter(|_| !ids.is_empty()) {
                place.repository.forget_all(&ids)?;
            }
        }
    }
    Ok(chosen.into_iter().map(|(_, one)| one).collect())
}

/// The configured repositories, each opened and listed once, when the first id is looked for there.
struct Places<'c> {
    context: &'c Context,
    configs: Vec<&'c RepositoryConfig>,
    /// Those that were asked so far; none where that failed.
    opened: Vec<Option<Place>>,
    /// Why the first one failed.
    lost: Option<Error>,
}

struct Place {
    repository: Repository,
    snapshots: Vec<Snapshot>,
}

impl<'c> Places<'c> {
    fn new(context: &'c Context) -> Result<Self> {
        let configs = context.config.repositories()?;
        Ok(Self { context, configs, opened: Vec::new(), lost: None })
    }

    fn snapshots(&self, number: usize) -> &[Snapshot] {
        let place = self.opened.get(number).and_then(Option::as_ref);
        place.map_or(&[], |place| &place.snapshots)
    }

    fn open(&mut self, config: &RepositoryConfig) {
        let opened = self.context.open(config).and_then(|repository| {
            let snapshots = repository.snapshots()?;
            Ok(Place { repository, snapshots })
        });
        self.opened.push(match opened {
            Ok(place) => Some(place),
            Err(error) => {
                self.lost.get_or_insert(error);
                None
            }
        });
    }

    /// The snapshot whose id starts with `id`, and the number of the repository that has it.
    fn look_up(&mut self, id: &str) -> Result<(usize, Forgotten)> {
        for (number, config) in self.configs.clone().into_iter().enumerate() {
            if number == self.opened.len() {
                self.open(config);
            }
            let Some(Some(place)) = self.opened.get(number) else { continue };
            let mut matching = place.snapshots.iter().filter(|one| one.id.starts_with(id));
            let found = match (matching.next(), matching.next()) {
                (Some(snapshot), None) => Some((snapshot.id.clone(), Some(snapshot.clone()))),
                (Some(_), Some(_)) => {
                    return Err(Error::new(
                        ErrorKind::Usage,
                        format!("several snapshots start with {id:?}"),
                    )
                    .with_hint("give more digits of the id"));
                }
                // One that cannot be read is not listed; it can be given up all the same.
                (None, _) => match place.repository.find_snapshot(id) {
                    Ok(snapshot) => Some((snapshot.id.clone(), Some(snapshot))),
                    Err(error) if error.kind() == RepoErrorKind::NotFound => None,
                    Err(error) if error.kind() == RepoErrorKind::Damaged => {
                        Some((id.to_owned(), None))
                    }
                    Err(error) => return Err(error.into()),
                },
            };
            if let Some((id, snapshot)) = found {
                return Ok((number, Forgotten { repository: config.name.clone(), id, snapshot }));
            }
        }
        Err(self.lost.take().unwrap_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("there is no snapshot {id:?}"))
                .with_hint("`backstay list` shows the snapshots there are")
        }))
    }
}
