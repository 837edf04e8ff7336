//! Timeline histories: which timeline came from which, and where.
//!
//! Each line of `NNNNNNNN.history` names an ancestor, the position where the next timeline left
//! it, and a reason for people: `1⇥0/3000148⇥no recovery target specified`. Comments begin with
//! `#`. Timeline 1 has no file, and an empty file says that there are no ancestors
//! (`access/transam/timeline.c`).

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use super::{Lsn, SegmentSize};

/// Where a timeline was left for the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Switch {
    pub timeline: u32,
    /// The first position that is *not* of this timeline any more.
    pub end: Lsn,
    pub reason: String,
}

/// A timeline and the way to it from the first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    timeline: u32,
    /// The oldest first.
    ancestors: Vec<Switch>,
}

/// Why a file is no timeline history.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the history of timeline {timeline} cannot be used: {what}")]
pub struct HistoryError {
    pub timeline: u32,
    what: String,
}

impl History {
    /// A timeline without ancestors.
    pub fn first(timeline: u32) -> Self {
        Self { timeline, ancestors: Vec::new() }
    }

    /// Reads the history file of `timeline`.
    pub fn parse(timeline: u32, content: &[u8]) -> Result<Self, HistoryError> {
        let error = |what: String| HistoryError { timeline, what };
        let text = std::str::from_utf8(content)
            .map(std::borrow::Cow::Borrowed)
            // The reason may be in any encoding; what is read is ASCII.
            .unwrap_or_else(|_| String::from_utf8_lossy(content));
        let mut ancestors: Vec<Switch> = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |what: &str| error(format!("line {}: {what}", number + 1));
            let mut fields = line.splitn(2, char::is_whitespace);
            let ancestor = fields.next().unwrap_or_default();
            let rest = fields.next().unwrap_or_default().trim_start();
            let (position, reason) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            let ancestor: u32 =
                ancestor.parse().map_err(|_| wrong("it does not begin with a timeline"))?;
            let end: Lsn = position.parse().map_err(|e: super::LsnError| wrong(&e.to_string()))?;
            if ancestor == 0 || ancestor >= timeline {
                return Err(wrong(&format!("timeline {ancestor} cannot be an ancestor")));
            }
            if ancestors.last().is_some_and(|before| before.timeline >= ancestor) {
                return Err(wrong("timelines do not grow"));
            }
            // Recovery may have ended before the last promotion: then nothing of the timeline of that
            // one is on the way here, and its own ancestors were left earlier than its file says.
            for older in &mut ancestors {
                older.end = older.end.min(end);
            }
            ancestors.push(Switch { timeline: ancestor, end, reason: reason.trim().to_owned() });
        }
        Ok(Self { timeline, ancestors })
    }

    pub fn timeline(&self) -> u32 {
        self.timeline
    }

    /// The timelines before this one, the oldest first.
    pub fn ancestors(&self) -> &[Switch] {
        &self.ancestors
    }

    /// Where this timeline began; 0/0 without ancestors.
    pub fn begin(&self) -> Lsn {
        self.ancestors.last().map_or(Lsn(0), |switch| switch.end)
    }

    /// Which timeline holds the byte at `lsn`, seen from this one.
    pub fn timeline_at(&self, lsn: Lsn) -> u32 {
        self.ancestors.iter().find(|switch| lsn < switch.end).map_or(self.timeline, |s| s.timeline)
    }

    /// Where `timeline` was left on the way here: none when it is this one, or not on the way.
    pub fn end_of(&self, timeline: u32) -> Option<Lsn> {
        self.ancestors.iter().find(|switch| switch.timeline == timeline).map(|switch| switch.end)
    }

    /// Whether WAL up to `lsn` on `timeline` is a part of this history.
    pub fn contains(&self, timeline: u32, lsn: Lsn) -> bool {
        if timeline == self.timeline {
            return lsn >= self.begin();
        }
        // Up to the very position of the switch both histories are one.
        self.end_of(timeline).is_some_and(|end| lsn <= end)
    }

    /// The timelines whose files may hold segment `number`, the best first.
    ///
    /// The segment in which a timeline began is a copy of its ancestor's up to there, so both hold
    /// what lies before the switch, and the younger one goes on.
    pub fn timelines_of(&self, number: u64, size: SegmentSize) -> Vec<u32> {
        let mut found = Vec::new();
        let mut begin = self.begin();
        let mut end = None;
        let mut timeline = self.timeline;
        let mut older = self.ancestors.iter().rev();
        loop {
            let begins = begin.segment(size) <= number;
            let ends = end.is_none_or(|end: Lsn| number <= end.last_segment(size));
            if begins && ends {
                found.push(timeline);
            }
            let Some(ancestor) = older.next() else { return found };
            timeline = ancestor.timeline;
            end = Some(ancestor.end);
            begin = self
                .ancestors
                .iter()
                .rev()
                .find(|switch| switch.timeline < timeline)
                .map_or(Lsn(0), |switch| switch.end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn history() -> History {
        // Timelines 2 and 4 left their ancestors in the middle of segments 3 and 6.
        let text = "1\t0/380000\tno recovery target specified\n\n# a comment\n2\t0/600000\tbefore \
                    2000-01-01 00:00:00+00\n";
        History::parse(4, text.as_bytes()).unwrap()
    }

    #[test]
    fn reads_what_a_server_writes() {
        let history = history();
        assert_eq!(history.ancestors().len(), 2);
        assert_eq!(history.ancestors()[1].reason, "before 2000-01-01 00:00:00+00");
        assert_eq!(history.begin(), Lsn(6 * MIB));
        assert_eq!(history.end_of(1), Some(Lsn(3 * MIB + MIB / 2)));
        assert_eq!(history.end_of(4), None);
    }

    #[test]
    fn tells_the_timeline_of_a_position() {
        let history = history();
        assert_eq!(history.timeline_at(Lsn(0)), 1);
        assert_eq!(history.timeline_at(Lsn(3 * MIB + MIB / 2 - 1)), 1);
        assert_eq!(history.timeline_at(Lsn(3 * MIB + MIB / 2)), 2);
        assert_eq!(history.timeline_at(Lsn(6 * MIB)), 4);
        assert!(history.contains(1, Lsn(2 * MIB)));
        assert!(!history.contains(1, Lsn(4 * MIB)));
        assert!(!history.contains(3, Lsn(0)));
        assert!(history.contains(4, Lsn(9 * MIB)));
    }

    #[test]
    fn the_segment_of_a_switch_is_on_both_timelines_the_younger_first() {
        let history = history();
        let size = SegmentSize::MIN;
        assert_eq!(history.timelines_of(2, size), [1]);
        assert_eq!(history.timelines_of(3, size), [2, 1]);
        assert_eq!(history.timelines_of(4, size), [2]);
        // The second switch lies on a boundary: the older timeline's last segment is the one before.
        assert_eq!(history.timelines_of(5, size), [2]);
        assert_eq!(history.timelines_of(6, size), [4]);
    }

    /// A server of timeline 2, recovered to a moment before it left timeline 1, and promoted.
    #[test]
    fn a_return_to_before_the_last_promotion_leaves_nothing_of_the_timeline_between() {
        let text = "1\t0/600000\tno recovery target specified\n2\t0/380000\tbefore a moment\n";
        let history = History::parse(3, text.as_bytes()).unwrap();
        assert_eq!(history.timeline_at(Lsn(0x37_FFFF)), 1);
        assert_eq!(history.timeline_at(Lsn(0x38_0000)), 3);
        assert_eq!(history.timeline_at(Lsn(0x60_0000)), 3);
        assert_eq!(history.begin(), Lsn(0x38_0000));
        assert!(history.contains(1, Lsn(0x38_0000)));
        assert!(!history.contains(1, Lsn(0x40_0000)));
        assert_eq!(history.timelines_of(2, SegmentSize::MIN), [1]);
        assert_eq!(history.timelines_of(4, SegmentSize::MIN), [3]);
    }

    #[test]
    fn an_empty_history_has_no_ancestors() {
        assert_eq!(History::parse(3, b"").unwrap(), History::first(3));
        assert_eq!(History::parse(3, b"\n  \n# nothing\n").unwrap(), History::first(3));
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        for text in
            ["one\t0/1\tx", "1", "1\tnowhere\tx", "5\t0/1\tx", "0\t0/1\tx", "2\t0/2\tx\n1\t0/3\tx"]
        {
            let error = History::parse(5, text.as_bytes()).unwrap_err();
            assert!(error.to_string().contains("line "), "{error}");
        }
        // A reason in another encoding is nobody's business.
        let latin = b"1\t0/1\tv\xfcr\n";
        assert_eq!(History::parse(2, latin).unwrap().ancestors().len(), 1);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(0u8.., 0..200)) {
            let _ = History::parse(7, &bytes);
        }

        /// As a server looks it up: the youngest whose range holds the position, where ranges begin
        /// where the entry before ends, and may be empty.
        #[test]
        fn every_position_is_where_a_server_looks_for_it(
            ends in proptest::collection::vec(0u64..40, 1..6),
            at in 0u64..45,
        ) {
            let lines = ends.iter().zip(1..).map(|(end, n)| format!("{n}\t0/{end:X}\tx\n"));
            let own = ends.len() as u32 + 1;
            let history = History::parse(own, lines.collect::<String>().as_bytes()).unwrap();
            let begins = std::iter::once(0).chain(ends.iter().copied());
            let ranges = begins.zip(ends.iter().copied().chain([u64::MAX])).zip(1..);
            let servers = ranges.filter(|((begin, end), _)| (*begin..*end).contains(&at)).last();
            proptest::prop_assert_eq!(Some(history.timeline_at(Lsn(at))), servers.map(|(_, n)| n));
        }
    }
}
