//! The protocol by which garbage is collected, without locks and without clocks: everything that
//! can happen, explored by a model checker.
//!
//! 1. A writer creates its session, **then** reads the newest list of condemned packs, **then** the
//!    index, **then** which packs are there. What lies only in condemned packs counts as absent.
//! 2. It uploads what is absent in packs of its own, then a segment that lists them, then its
//!    outcome. Anybody may give it up by a tombstone in that place: who is first has decided.
//! 3. A run of maintenance marks one place of each chunk that snapshots need, and creates
//!    `condemned`: the packs of ended sessions without a mark. **Then** it lists open sessions.
//! 4. When each of those has ended it marks again, and creates `sweep`: those condemned packs that
//!    are still without a mark. Then a head, the index without them. Then anybody deletes them.
//! 5. A head takes in the segments that it **found**, of sessions that had ended, beside those that
//!    heads before it took in. Any other segment counts, also one of a session that was given up.
//! 6. The next run begins when there is a head and all packs of the last sweep are **gone**.
//! 7. Each list and each head is created once; who comes second goes on with the first one.
//!
//! Always: what a snapshot needs lies in a pack that is there and that the index names, unless it
//! was forgotten; a reader finds it; a writer is told the truth about its outcome.
//!
//! Each operation on the store is a step, and each participant may stop before any of them, for
//! ever or until everything has changed. To die is never to take the next step. What a participant
//! of maintenance has read serves only the object it creates next, so one who starts again is one
//! who had not read yet, and one whose object is there already is one with empty hands.
//!
//! Left out: packs of several chunks, which live as long as one of them does; the pages of a
//! listing; retries that arrive after an object was deleted; damage; that the objects of ended
//! sessions and forgotten snapshots are cleared: to be forgotten is to have ended.

use stateright::{Checker, HasDiscoveries, Model, Property};

/// Sessions, chunks or packs, a bit each.
type Set = u8;

const SESSIONS: usize = 4;
const CHUNKS: usize = 2;
/// With run 0, which is what was before the first one.
const RUNS: usize = 4;
const PARTICIPANTS: usize = 3;

const KEPT: &str = "what a snapshot needs is there";
const FOUND: &str = "a reader finds what is there";
const TOLD: &str = "a writer is told the truth";

fn has(set: Set, member: usize) -> bool {
    set >> member & 1 == 1
}

fn members(set: Set) -> impl Iterator<Item = usize> {
    (0..Set::BITS as usize).filter(move |member| has(set, *member))
}

/// The pack in which a session stores a chunk.
fn pack(session: usize, chunk: usize) -> Set {
    1 << (session * CHUNKS + chunk)
}

fn packs_of(sessions: Set) -> Set {
    members(sessions).map(|session| pack(session, 0) | pack(session, 1)).sum()
}

fn packs_with(chunk: usize) -> Set {
    (0..SESSIONS).map(|session| pack(session, chunk)).sum()
}

fn chunks_in(packs: Set) -> Set {
    (0..CHUNKS).filter(|chunk| packs & packs_with(*chunk) != 0).map(|chunk| 1 << chunk).sum()
}

/// What is left out of the protocol, or done in another order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    None,
    LooksBeforeItAnnouncesItself,
    LooksBeforeItKnowsWhatIsCondemned,
    IgnoresWhatIsCondemned,
    TrustsTheIndex,
    ListsSessionsFirst,
    MarksOnce,
    SweepsOnItsOwn,
    RemovesTombstones,
    BeginsBeforeThereIsAHead,
    BeginsBeforeAllIsGone,
    TakesInByName,
    ForgetsWhatWasTakenIn,
    ClearsWhatItDoesNotKnow,
    ReloadsOnce,
}

struct Protocol {
    /// The chunks that each session wants. Session 0 ended before the first step.
    wants: [Set; SESSIONS],
    /// Sessions that copy chunks, as maintenance does, and end with a tombstone.
    moves: Set,
    participants: usize,
    runs: usize,
    /// How many snapshots may be forgotten.
    forgets: u32,
    reads: bool,
    /// Whether segments that a head took in are deleted.
    clears: bool,
    /// Whether all that is worth seeing must be seen.
    shows: bool,
    flaw: Flaw,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Head {
    packs: Set,
    taken_in: Set,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Run {
    condemned: Option<Set>,
    sessions: Option<Set>,
    sweep: Option<Set>,
    head: Option<Head>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Store {
    announced: Set,
    committed: Set,
    tombstones: Set,
    forgotten: Set,
    packs: Set,
    segments: [Option<Set>; SESSIONS],
    runs: [Run; RUNS],
}

impl Store {
    fn ended(&self) -> Set {
        self.committed | self.tombstones
    }

    fn newest_run(&self) -> usize {
        (0..RUNS).rev().find(|run| self.runs[*run].condemned.is_some()).unwrap_or(0)
    }

    fn newest_head(&self) -> (usize, Head) {
        let newest = (0..RUNS).rev().find_map(|run| Some((run, self.runs[run].head?)));
        newest.unwrap_or_default()
    }

    /// Segments that count beside the newest head.
    fn segments(&self) -> Set {
        let taken_in = self.newest_head().1.taken_in;
        let counts = |s: &usize| self.segments[*s].is_some() && !has(taken_in, *s);
        (0..SESSIONS).filter(counts).map(|session| 1 << session).sum()
    }

    /// The packs that the index names.
    fn index(&self) -> Set {
        let beside = members(self.segments()).filter_map(|session| self.segments[session]);
        beside.fold(self.newest_head().1.packs, |all, packs| all | packs)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Announce,
    ReadCondemned,
    ListIndex,
    ListPacks,
    Upload,
    PutSegment,
    End,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Writer {
    /// How many it took.
    steps: usize,
    condemned: Set,
    known: Set,
    missing: Set,
    uploaded: Set,
    /// Whether its snapshot exists, as it was told.
    told: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum List {
    Condemned,
    Sessions,
    Sweep,
}

/// What a participant of maintenance has read, for the object of a run that it creates next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Hands {
    Empty,
    /// To make a list by marking: what has ended, and with which snapshots;
    Ended {
        list: List,
        run: usize,
        ended: Set,
        snapshots: Set,
    },
    /// then the chunks that those need which are not forgotten;
    Needed {
        list: List,
        run: usize,
        ended: Set,
        needed: Set,
    },
    /// then the packs that the index names;
    Known {
        list: List,
        run: usize,
        ended: Set,
        needed: Set,
        known: Set,
    },
    /// then, seeing which packs are there, the list. `open` is for `ListsSessionsFirst`.
    Create {
        list: List,
        run: usize,
        members: Set,
        open: Set,
    },
    /// To merge the index: what has ended;
    Merge {
        run: usize,
        sweep: Set,
        ended: Set,
    },
    /// then what the index names;
    Entries {
        run: usize,
        sweep: Set,
        known: Set,
        taken_in: Set,
    },
    /// then, seeing which packs are there, the head.
    Head {
        run: usize,
        sweep: Set,
        packs: Set,
        taken_in: Set,
    },
    /// Only for `SweepsOnItsOwn`.
    Delete {
        sweep: Set,
    },
}

/// Who wants one chunk of a snapshot. `failed` is the head with which it was not found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Reader {
    Away,
    ListIndex { snapshot: usize, chunk: usize, failed: Option<usize> },
    ListPacks { snapshot: usize, chunk: usize, failed: Option<usize>, head: usize, known: Set },
    Fetch { snapshot: usize, chunk: usize, failed: Option<usize>, head: usize, from: Set },
    Failed,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    store: Store,
    writers: [Writer; SESSIONS],
    /// Sorted: who is who makes no difference.
    participants: [Hands; PARTICIPANTS],
    reader: Reader,
}

/// Which of several places of a chunk is taken. It hangs on the order in which they were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pick {
    First,
    Last,
}

impl Pick {
    fn one_of(self, packs: Set) -> Set {
        match self {
            Self::First => packs & packs.wrapping_neg(),
            Self::Last => 1 << packs.ilog2(),
        }
    }

    /// One place of each chunk that has any: rather one that is there, rather not in `avoided`.
    fn places(self, chunks: Set, known: Set, there: Set, avoided: Set) -> Set {
        let place = |chunk| {
            let known = known & packs_with(chunk);
            [known & there & !avoided, known & there, known].into_iter().find(|packs| *packs != 0)
        };
        members(chunks).filter_map(place).map(|packs| self.one_of(packs)).sum()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Write(usize, Step),
    /// The snapshot is created, and its writer does not hear of it.
    LoseAnswer(usize),
    /// A participant with empty hands finds what is to be done.
    Look(usize, Hands),
    Maintain(usize, Hands, Pick),
    /// Anybody may at any time: it costs work, nothing else.
    GiveUp(usize),
    Forget(usize),
    DeletePack(usize),
    DeleteSegment(usize),
    DeleteTombstone(usize),
    /// Deletes what a participant wrote that is about to create the head that names it.
    DeleteMerged(usize),
    Open(usize, usize),
    Read(Reader, Pick),
}

impl Protocol {
    fn is(&self, flaw: Flaw) -> bool {
        self.flaw == flaw
    }

    fn wanted_by(&self, sessions: Set) -> Set {
        members(sessions).fold(0, |all, session| all | self.wants[session])
    }

    fn steps(&self) -> [Step; 7] {
        use Step::*;
        match self.flaw {
            Flaw::LooksBeforeItAnnouncesItself => {
                [ReadCondemned, ListIndex, ListPacks, Announce, Upload, PutSegment, End]
            }
            Flaw::LooksBeforeItKnowsWhatIsCondemned => {
                [Announce, ListIndex, ListPacks, ReadCondemned, Upload, PutSegment, End]
            }
            _ => [Announce, ReadCondemned, ListIndex, ListPacks, Upload, PutSegment, End],
        }
    }

    fn next_step(&self, writer: &Writer) -> Option<Step> {
        self.steps().get(writer.steps).copied()
    }

    fn write(&self, store: &mut Store, writer: &mut Writer, session: usize, step: Step) {
        let bit = 1 << session;
        let moves = has(self.moves, session);
        match step {
            Step::Announce => store.announced |= bit,
            Step::ReadCondemned if self.is(Flaw::IgnoresWhatIsCondemned) => {}
            Step::ReadCondemned => {
                writer.condemned = store.runs[store.newest_run()].condemned.unwrap_or(0);
            }
            Step::ListIndex => writer.known = store.index(),
            Step::ListPacks if self.is(Flaw::TrustsTheIndex) => {}
            Step::ListPacks => writer.known &= store.packs,
            Step::Upload => {
                let Some(chunk) = members(writer.missing).next() else { return };
                store.packs |= pack(session, chunk);
                writer.uploaded |= pack(session, chunk);
                writer.missing &= !(1 << chunk);
                if writer.missing != 0 {
                    return;
                }
            }
            Step::PutSegment => {
                store.segments[session] = Some(writer.uploaded);
                writer.uploaded = 0;
            }
            Step::End => {
                match store.ended() & bit {
                    0 if moves => store.tombstones |= bit,
                    0 => store.committed |= bit,
                    _ => {}
                }
                writer.told = Some(has(store.committed, session));
            }
        }
        writer.steps += 1;
        if self.next_step(writer) == Some(Step::Upload) {
            let present = writer.known & !writer.condemned;
            let absent = if moves { chunks_in(writer.known) } else { !chunks_in(present) };
            writer.missing = self.wants[session] & absent;
            (writer.known, writer.condemned) = (0, 0);
            if writer.missing == 0 {
                writer.steps += 2;
            }
        }
    }

    /// What a participant with empty hands may do. Without a flaw, it is one thing at most.
    fn openings(&self, store: &Store) -> Vec<Hands> {
        let newest = store.newest_run();
        let has_head = |run: usize| store.runs[run].head.is_some();
        let first = if self.is(Flaw::BeginsBeforeThereIsAHead) { 1 } else { newest };
        let unfinished = (first..=newest).filter(|run| !has_head(*run));
        let mut openings: Vec<_> = unfinished.filter_map(|run| self.resume(store, run)).collect();
        let gone = store.runs[newest].sweep.unwrap_or(0) & store.packs == 0;
        let may_begin = match self.flaw {
            Flaw::BeginsBeforeThereIsAHead => true,
            Flaw::BeginsBeforeAllIsGone => has_head(newest),
            _ => has_head(newest) && gone,
        };
        if may_begin && newest < self.runs {
            openings.push(Self::list_ended(store, List::Condemned, newest + 1));
        }
        openings
    }

    fn resume(&self, store: &Store, run: usize) -> Option<Hands> {
        let ended = store.ended();
        let Run { condemned, sessions, sweep, .. } = store.runs[run];
        match (sessions, sweep) {
            (_, Some(sweep)) => Some(Hands::Merge { run, sweep, ended }),
            (None, _) => {
                let members = store.announced & !ended;
                Some(Hands::Create { list: List::Sessions, run, members, open: 0 })
            }
            (Some(sessions), _) if sessions & !ended != 0 => None,
            _ if self.is(Flaw::MarksOnce) => {
                Some(Hands::Create { list: List::Sweep, run, members: condemned?, open: 0 })
            }
            _ => Some(Self::list_ended(store, List::Sweep, run)),
        }
    }

    fn list_ended(store: &Store, list: List, run: usize) -> Hands {
        let ended = if list == List::Condemned { store.ended() } else { 0 };
        Hands::Ended { list, run, ended, snapshots: store.committed & !store.forgotten }
    }

    /// The next step of a participant; what it has in hands then.
    fn maintain(&self, store: &mut Store, hands: Hands, pick: Pick) -> Hands {
        match hands {
            Hands::Empty => hands,
            Hands::Ended { list, run, ended, snapshots } => {
                let needed = self.wanted_by(snapshots & !store.forgotten);
                Hands::Needed { list, run, ended, needed }
            }
            Hands::Needed { list, run, ended, needed } => {
                Hands::Known { list, run, ended, needed, known: store.index() }
            }
            Hands::Known { list, run, ended, needed, known } => {
                let there = if self.is(Flaw::TrustsTheIndex) { known } else { store.packs };
                let condemned = store.runs[run].condemned.unwrap_or(0);
                let live = pick.places(needed, known, there, condemned);
                if chunks_in(live & there) != needed {
                    // It refuses to go on: what cannot be seen might be needed.
                    return Hands::Empty;
                }
                match list {
                    List::Sweep if self.is(Flaw::SweepsOnItsOwn) => {
                        Hands::Merge { run, sweep: condemned & !live, ended: store.ended() }
                    }
                    List::Sweep => Hands::Create { list, run, members: condemned & !live, open: 0 },
                    _ => {
                        let early = self.is(Flaw::ListsSessionsFirst);
                        let open = if early { store.announced & !store.ended() } else { 0 };
                        let members = store.packs & packs_of(ended) & !live;
                        Hands::Create { list, run, members, open }
                    }
                }
            }
            Hands::Create { list, run, members, open } => {
                let ended = store.ended();
                let objects = &mut store.runs[run];
                match list {
                    List::Condemned => objects.condemned.get_or_insert(members),
                    // Outcomes are listed after the sessions. Listed any earlier, they would have
                    // the run wait for sessions that have ended already, which is no waiting.
                    List::Sessions => objects.sessions.get_or_insert(members & !ended),
                    List::Sweep => objects.sweep.get_or_insert(members),
                };
                if list == List::Condemned && self.is(Flaw::ListsSessionsFirst) {
                    return Hands::Create { list: List::Sessions, run, members: open, open: 0 };
                }
                Hands::Empty
            }
            Hands::Merge { run, sweep, ended } => {
                let before = store.newest_head().1.taken_in;
                let taken_in = match self.flaw {
                    Flaw::TakesInByName => ended | before,
                    Flaw::ForgetsWhatWasTakenIn => store.segments() & ended,
                    _ => store.segments() & ended | before,
                };
                Hands::Entries { run, sweep, known: store.index(), taken_in }
            }
            Hands::Entries { run, sweep, known, taken_in } => {
                let packs = pick.places(chunks_in(known), known, store.packs, sweep) & !sweep;
                Hands::Head { run, sweep, packs, taken_in }
            }
            Hands::Head { run, sweep, packs, taken_in } => {
                store.runs[run].head.get_or_insert(Head { packs, taken_in });
                if self.is(Flaw::SweepsOnItsOwn) { Hands::Delete { sweep } } else { Hands::Empty }
            }
            Hands::Delete { sweep } => match members(sweep & store.packs).next() {
                Some(pack) => {
                    store.packs &= !(1 << pack);
                    hands
                }
                None => Hands::Empty,
            },
        }
    }

    /// Whether what it will create is there already.
    fn comes_too_late(&self, store: &Store, hands: Hands) -> bool {
        match hands {
            Hands::Ended { list, run, .. }
            | Hands::Needed { list, run, .. }
            | Hands::Known { list, run, .. }
            | Hands::Create { list, run, .. } => match list {
                List::Condemned => store.runs[run].condemned.is_some(),
                List::Sessions => store.runs[run].sessions.is_some(),
                List::Sweep => store.runs[run].sweep.is_some(),
            },
            Hands::Merge { run, .. } | Hands::Entries { run, .. } | Hands::Head { run, .. } => {
                store.runs[run].head.is_some() && !self.is(Flaw::SweepsOnItsOwn)
            }
            Hands::Empty | Hands::Delete { .. } => false,
        }
    }

    /// A reader gives up when a chunk is in no pack that is there, and the head is still the one
    /// with which it was not found before.
    fn read(&self, store: &Store, reader: Reader, pick: Pick) -> Reader {
        match reader {
            Reader::Away | Reader::Failed => reader,
            Reader::ListIndex { snapshot, chunk, failed } => {
                let (head, known) = (store.newest_head().0, store.index() & packs_with(chunk));
                Reader::ListPacks { snapshot, chunk, failed, head, known }
            }
            Reader::ListPacks { snapshot, .. } | Reader::Fetch { snapshot, .. }
                if has(store.forgotten, snapshot) =>
            {
                Reader::Away
            }
            Reader::ListPacks { snapshot, chunk, failed, head, known } => {
                match known & store.packs {
                    0 if failed == Some(head) => Reader::Failed,
                    0 => Reader::ListIndex { snapshot, chunk, failed: Some(head) },
                    there => {
                        let from = pick.one_of(there);
                        Reader::Fetch { snapshot, chunk, failed, head, from }
                    }
                }
            }
            Reader::Fetch { from, .. } if from & store.packs != 0 => Reader::Away,
            Reader::Fetch { failed: Some(_), .. } if self.is(Flaw::ReloadsOnce) => Reader::Failed,
            Reader::Fetch { snapshot, chunk, head, .. } => {
                Reader::ListIndex { snapshot, chunk, failed: Some(head) }
            }
        }
    }

    fn keeps_all(&self, state: &State) -> bool {
        let store = &state.store;
        let readable = chunks_in(store.index() & store.packs);
        self.wanted_by(store.committed & !store.forgotten) & !readable == 0
    }

    fn tells_the_truth(&self, state: &State) -> bool {
        let committed = state.store.committed;
        let told = state.writers.iter().map(|writer| writer.told).enumerate();
        told.into_iter()
            .all(|(session, told)| told.is_none_or(|told| told == has(committed, session)))
    }

    /// Whether a writer commits in this state, if it is the next to take a step.
    fn commits(&self, state: &State) -> bool {
        let open = state.store.announced & !state.store.ended() & !self.moves;
        members(open).any(|session| self.next_step(&state.writers[session]) == Some(Step::End))
    }
}

fn newest(state: &State) -> &Run {
    &state.store.runs[state.store.newest_run()]
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut store = Store::default();
        let nothing = Some(0);
        let head = Some(Head::default());
        store.runs[0] = Run { condemned: nothing, sessions: nothing, sweep: nothing, head };
        if self.wants[0] != 0 {
            (store.announced, store.committed) = (1, 1);
            store.packs = members(self.wants[0]).map(|chunk| pack(0, chunk)).sum();
            store.segments[0] = Some(store.packs);
        }
        let mut writers = [Writer::default(); SESSIONS];
        writers[0].steps = self.steps().len();
        let participants = [Hands::Empty; PARTICIPANTS];
        vec![State { store, writers, participants, reader: Reader::Away }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let store = &state.store;
        for session in (0..SESSIONS).filter(|session| self.wants[*session] != 0) {
            let Some(step) = self.next_step(&state.writers[session]) else { continue };
            actions.push(Action::Write(session, step));
            if step == Step::End && !has(store.ended() | self.moves, session) {
                actions.push(Action::LoseAnswer(session));
            }
        }
        for (number, hands) in state.participants[..self.participants].iter().enumerate() {
            if state.participants[..number].contains(hands) {
                continue;
            }
            match hands {
                Hands::Empty => {
                    let openings = self.openings(store).into_iter();
                    actions.extend(openings.map(|hands| Action::Look(number, hands)));
                }
                Hands::Known { .. } | Hands::Entries { .. } => {
                    actions.push(Action::Maintain(number, *hands, Pick::First));
                    actions.push(Action::Maintain(number, *hands, Pick::Last));
                }
                _ => actions.push(Action::Maintain(number, *hands, Pick::First)),
            }
            if self.is(Flaw::ClearsWhatItDoesNotKnow) && matches!(hands, Hands::Head { .. }) {
                actions.push(Action::DeleteMerged(number));
            }
        }
        actions.extend(members(store.announced & !store.ended()).map(Action::GiveUp));
        if store.forgotten.count_ones() < self.forgets {
            actions.extend(members(store.committed & !store.forgotten).map(Action::Forget));
        }
        for run in &store.runs {
            let Some(head) = run.head else { continue };
            actions.extend(members(run.sweep.unwrap_or(0) & store.packs).map(Action::DeletePack));
            if self.clears {
                let there = |session: &usize| store.segments[*session].is_some();
                actions.extend(members(head.taken_in).filter(there).map(Action::DeleteSegment));
            }
            if self.is(Flaw::RemovesTombstones) {
                let aborted = run.sessions.unwrap_or(0) & store.tombstones;
                actions.extend(members(aborted).map(Action::DeleteTombstone));
            }
        }
        match state.reader {
            Reader::Away if self.reads => {
                for snapshot in members(store.committed & !store.forgotten) {
                    let chunks = members(self.wants[snapshot]);
                    actions.extend(chunks.map(|chunk| Action::Open(snapshot, chunk)));
                }
            }
            Reader::Away | Reader::Failed => {}
            reader => {
                actions.push(Action::Read(reader, Pick::First));
                actions.push(Action::Read(reader, Pick::Last));
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        let State { store, writers, participants, reader } = &mut state;
        match action {
            Action::Write(session, step) => {
                self.write(store, &mut writers[session], session, step);
            }
            Action::LoseAnswer(session) => store.committed |= 1 << session,
            Action::Look(number, hands) => participants[number] = hands,
            Action::Maintain(number, hands, pick) => {
                participants[number] = self.maintain(store, hands, pick);
            }
            Action::GiveUp(session) => store.tombstones |= 1 << session,
            Action::Forget(session) => store.forgotten |= 1 << session,
            Action::DeletePack(pack) => store.packs &= !(1 << pack),
            Action::DeleteSegment(session) => store.segments[session] = None,
            Action::DeleteTombstone(session) => store.tombstones &= !(1 << session),
            Action::DeleteMerged(number) => {
                if let Hands::Head { packs, .. } = &mut participants[number] {
                    *packs = 0;
                }
            }
            Action::Open(snapshot, chunk) => {
                *reader = Reader::ListIndex { snapshot, chunk, failed: None };
            }
            Action::Read(from, pick) => *reader = self.read(store, from, pick),
        }
        for hands in participants.iter_mut() {
            if self.comes_too_late(store, *hands) {
                *hands = Hands::Empty;
            }
        }
        participants[..self.participants].sort_unstable();
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let (always, sometimes) = (Property::<Self>::always, Property::<Self>::sometimes);
        let mut all = vec![
            always(KEPT, Self::keeps_all),
            always(FOUND, |_, state| state.reader != Reader::Failed),
            always(TOLD, Self::tells_the_truth),
        ];
        if self.shows {
            all.extend([
                sometimes("garbage is deleted", |_, state| {
                    let swept = newest(state).sweep.unwrap_or(0);
                    newest(state).head.is_some() && swept & !state.store.packs != 0
                }),
                sometimes("a condemned pack stays for an old session", |_, state| {
                    let Run { condemned, sweep, .. } = newest(state);
                    sweep.is_some() && sweep != condemned
                }),
                sometimes("a writer finds that it was given up", |_, state| {
                    state.writers.iter().any(|writer| writer.told == Some(false))
                }),
                sometimes("a run that everybody left can go on", |model, state| {
                    let left = state.participants.iter().all(|hands| *hands == Hands::Empty);
                    let begun = newest(state).head.is_none();
                    left && begun && !model.openings(&state.store).is_empty()
                }),
                sometimes("two are about to sweep different packs", |_, state| {
                    let sweep =
                        |list: &Hands| matches!(list, Hands::Create { list: List::Sweep, .. });
                    let [one, other, ..] = state.participants;
                    one != other && sweep(&one) && sweep(&other)
                }),
                sometimes("a commit before the sessions are listed", |model, state| {
                    newest(state).sessions.is_none() && model.commits(state)
                }),
                sometimes("a commit before the second marking", |model, state| {
                    let Run { sessions, sweep, .. } = newest(state);
                    sessions.is_some() && sweep.is_none() && model.commits(state)
                }),
                sometimes("a commit before the head", |model, state| {
                    let Run { sweep, head, .. } = newest(state);
                    sweep.is_some() && head.is_none() && model.commits(state)
                }),
                sometimes("a commit before all is gone", |model, state| {
                    let Run { sweep, head, .. } = newest(state);
                    let left = sweep.unwrap_or(0) & state.store.packs;
                    head.is_some() && left != 0 && model.commits(state)
                }),
            ]);
        }
        all
    }
}

/// One chunk, which an old snapshot has and two writers want.
const SMALL: Protocol = Protocol {
    wants: [0b1, 0b1, 0b1, 0],
    moves: 0,
    participants: 2,
    runs: 1,
    forgets: 1,
    reads: false,
    clears: false,
    shows: false,
    flaw: Flaw::None,
};
/// The second writer.
const SECOND: Set = 1 << 2;
/// One chunk, one writer.
const ALONE: [Set; SESSIONS] = [0b1, 0b1, 0, 0];
/// One chunk, which is new, and two writers.
const NEW: [Set; SESSIONS] = [0, 0b1, 0b1, 0];

/// Visits every state.
fn holds(protocol: Protocol) {
    let checker = protocol.checker().threads(2).spawn_dfs().join();
    checker.assert_properties();
    assert!(checker.is_done());
}

fn is_caught(property: &'static str, flaw: Flaw, protocol: Protocol) {
    let checker = Protocol { flaw, ..protocol }.checker().threads(2);
    let checker = checker.finish_when(HasDiscoveries::AnyFailures).spawn_dfs().join();
    let found: Vec<_> = checker.discoveries().into_keys().collect();
    assert_eq!(found, [property], "{flaw:?}");
}

#[test]
fn a_snapshot_never_loses_a_chunk() {
    holds(Protocol { runs: 2, forgets: 2, shows: true, ..SMALL });
}

#[test]
fn nor_through_three_runs_and_chunks_that_are_moved() {
    holds(Protocol { moves: SECOND, runs: 3, forgets: 2, ..SMALL });
}

#[test]
fn nor_among_three_who_maintain() {
    holds(Protocol { participants: 3, runs: 2, forgets: 1, ..SMALL });
}

#[test]
fn nor_while_segments_are_cleared() {
    holds(Protocol { runs: 2, clears: true, ..SMALL });
}

#[test]
fn nor_when_two_writers_have_only_some_in_common() {
    holds(Protocol { wants: [0b11, 0b01, 0b11, 0], runs: 2, ..SMALL });
}

#[test]
fn a_reader_finds_every_chunk_while_packs_are_deleted() {
    holds(Protocol { moves: SECOND, participants: 1, runs: 2, reads: true, ..SMALL });
}

#[test]
fn a_writer_that_looks_before_it_announces_itself_is_caught() {
    is_caught(KEPT, Flaw::LooksBeforeItAnnouncesItself, Protocol { wants: ALONE, ..SMALL });
}

#[test]
fn a_writer_that_looks_before_it_knows_what_is_condemned_is_caught() {
    let protocol = Protocol { wants: ALONE, runs: 2, ..SMALL };
    is_caught(KEPT, Flaw::LooksBeforeItKnowsWhatIsCondemned, protocol);
}

#[test]
fn a_writer_that_ignores_what_is_condemned_is_caught() {
    is_caught(KEPT, Flaw::IgnoresWhatIsCondemned, Protocol { wants: ALONE, ..SMALL });
}

/// A segment may name what is gone: a session that was given up can still create its own.
#[test]
fn whoever_does_not_look_whether_packs_are_there_is_caught() {
    is_caught(KEPT, Flaw::TrustsTheIndex, Protocol { wants: NEW, runs: 2, ..SMALL });
}

#[test]
fn a_run_that_lists_sessions_before_it_condemns_is_caught() {
    is_caught(KEPT, Flaw::ListsSessionsFirst, Protocol { wants: ALONE, ..SMALL });
}

#[test]
fn a_run_that_marks_once_is_caught() {
    is_caught(KEPT, Flaw::MarksOnce, Protocol { wants: ALONE, ..SMALL });
}

/// With one chunk in two condemned packs and two who mark, each keeps another one.
#[test]
fn a_run_without_one_list_to_sweep_is_caught() {
    is_caught(KEPT, Flaw::SweepsOnItsOwn, Protocol { moves: SECOND, ..SMALL });
}

#[test]
fn a_run_that_removes_tombstones_is_caught() {
    is_caught(KEPT, Flaw::RemovesTombstones, Protocol { wants: ALONE, ..SMALL });
}

#[test]
fn a_run_that_begins_before_the_last_one_has_a_head_is_caught() {
    is_caught(KEPT, Flaw::BeginsBeforeThereIsAHead, Protocol { wants: ALONE, runs: 2, ..SMALL });
}

/// A session is given up, its pack swept and not deleted yet, and then it creates its segment. The
/// next run finds that pack, keeps it and condemns the other place of the chunk.
#[test]
fn a_run_that_begins_before_all_is_gone_is_caught() {
    let protocol = Protocol { wants: NEW, participants: 1, runs: 2, ..SMALL };
    is_caught(KEPT, Flaw::BeginsBeforeAllIsGone, protocol);
}

#[test]
fn a_head_that_takes_in_segments_it_did_not_find_is_caught() {
    is_caught(KEPT, Flaw::TakesInByName, Protocol { wants: NEW, ..SMALL });
}

/// A segment that counts again can be the only one that names a chunk's place, and who saw it taken
/// in deletes it.
#[test]
fn a_head_that_forgets_what_was_taken_in_is_caught() {
    let protocol = Protocol { participants: 1, runs: 3, clears: true, ..SMALL };
    is_caught(KEPT, Flaw::ForgetsWhatWasTakenIn, protocol);
}

#[test]
fn who_clears_what_no_head_names_yet_is_caught() {
    is_caught(KEPT, Flaw::ClearsWhatItDoesNotKnow, Protocol { wants: ALONE, ..SMALL });
}

#[test]
fn a_reader_that_loads_the_index_again_only_once_is_caught() {
    let protocol = Protocol { moves: SECOND, participants: 1, runs: 2, reads: true, ..SMALL };
    is_caught(FOUND, Flaw::ReloadsOnce, protocol);
}
