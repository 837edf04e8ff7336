//! Names in the folders above the snapshots: times that sort and have no colon, sources, and the
//! moments that a person may type below `at`.

use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

/// "2026-11-21T10-00-00Z": UTC, because local time repeats an hour each year.
pub fn time_name(time: Timestamp) -> String {
    time.to_zoned(TimeZone::UTC).strftime("%Y-%m-%dT%H-%M-%SZ").to_string()
}

/// "2026-11-21"
pub fn day_name(time: Timestamp) -> String {
    time.to_zoned(TimeZone::UTC).strftime("%Y-%m-%d").to_string()
}

/// The first moment that is *not* meant by a day, a minute or a second in UTC: each stands for all
/// of itself, so that the name of a snapshot's time finds that snapshot.
pub fn end_of(name: &str) -> Option<Timestamp> {
    let utc = |time: DateTime| time.to_zoned(TimeZone::UTC).ok().map(|time| time.timestamp());
    let (date, time) = match name.split_once('T') {
        None => (name, None),
        Some((date, time)) => (date, Some(time.strip_suffix('Z').unwrap_or(time))),
    };
    let date: Date = parts(date, [4, 2, 2]).and_then(|[year, month, day]| {
        Date::new(year, month.try_into().ok()?, day.try_into().ok()?).ok()
    })?;
    let Some(time) = time else { return utc(date.checked_add(1.day()).ok()?.at(0, 0, 0, 0)) };
    let (hour, minute, second, step) = match time.matches('-').count() {
        1 => parts(time, [2, 2]).map(|[hour, minute]| (hour, minute, 0, 1.minute()))?,
        _ => parts(time, [2, 2, 2])
            .map(|[hour, minute, second]| (hour, minute, second, 1.second()))?,
    };
    let small = |number: i16| i8::try_from(number).ok();
    let from = DateTime::new(
        date.year(),
        date.month(),
        date.day(),
        small(hour)?,
        small(minute)?,
        small(second)?,
        0,
    );
    utc(from.ok()?.checked_add(step).ok()?)
}

/// Numbers with a hyphen in between, each of exactly so many digits.
fn parts<const N: usize>(text: &str, digits: [usize; N]) -> Option<[i16; N]> {
    let mut numbers = [0; N];
    let mut words = text.split('-');
    for (number, digits) in numbers.iter_mut().zip(digits) {
        let word = words.next()?;
        if word.len() != digits || !word.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        *number = word.parse().ok()?;
    }
    words.next().is_none().then_some(numbers)
}

/// A source's name as the name of a folder: what cannot be in one is written `%2F`.
pub fn source_name(source: &str) -> String {
    let odd = |c: char| c == '/' || c == '%' || c.is_control();
    let mut name = String::new();
    for c in source.chars() {
        if odd(c) || (c == '.' && matches!(source, "." | "..")) {
            let mut bytes = [0; 4];
            for byte in c.encode_utf8(&mut bytes).bytes() {
                name.push_str(&format!("%{byte:02X}"));
            }
        } else {
            name.push(c);
        }
    }
    if name.is_empty() { "%".into() } else { name }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn end(name: &str) -> String {
        end_of(name).map_or("none".into(), |time| time.to_string())
    }

    #[test]
    fn a_name_stands_for_all_of_itself() {
        assert_eq!(end("2026-11-21"), "2026-11-22T00:00:00Z");
        assert_eq!(end("2026-12-31"), "2027-01-01T00:00:00Z");
        assert_eq!(end("2026-11-21T10-00"), "2026-11-21T10:01:00Z");
        assert_eq!(end("2026-11-21T10-00Z"), "2026-11-21T10:01:00Z");
        assert_eq!(end("2026-11-21T10-00-59Z"), "2026-11-21T10:01:00Z");
        for wrong in [
            "",
            "2026",
            "2026-11",
            "2026-11-31",
            "2026-1-21",
            "2026-11-21T",
            "2026-11-21T25-00",
            "2026-11-21T10",
            "2026-11-21T10-00-00-00",
            "+026-11-21",
            "latest",
            "9999-12-31",
        ] {
            assert_eq!(end(wrong), "none", "{wrong}");
        }
    }

    #[test]
    fn sources_are_names_of_folders() {
        assert_eq!(source_name("orders"), "orders");
        assert_eq!(source_name("a/b"), "a%2Fb");
        assert_eq!(source_name(".."), "%2E%2E");
        assert_eq!(source_name(".hidden"), ".hidden");
        assert_eq!(source_name("100%"), "100%25");
        assert_eq!(source_name(""), "%");
    }

    proptest! {
        #[test]
        fn no_two_sources_share_a_name(a: String, b: String) {
            let (x, y) = (source_name(&a), source_name(&b));
            prop_assert!(!x.contains('/') && !x.contains('\0') && !matches!(&*x, "" | "." | ".."));
            prop_assert_eq!(a == b, x == y);
        }

        #[test]
        fn the_time_of_a_snapshot_finds_it(seconds in -2_000_000_000_i64..200_000_000_000, nanos in 0..1_000_000_000_i32) {
            let time = Timestamp::new(seconds, if seconds < 0 { 0 } else { nanos }).unwrap();
            for name in [time_name(time), day_name(time)] {
                prop_assert!(!name.contains(':'));
                let end = end_of(&name).unwrap();
                prop_assert!(time < end && end_of(&time_name(end)).unwrap() > end);
            }
        }

        #[test]
        fn anything_may_be_typed(name: String) {
            let _ = end_of(&name);
        }
    }
}
