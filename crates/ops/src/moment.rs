//! Moments as people write them: exact, local, or so long ago. What could mean two moments is
//! refused; a recovery to the wrong hour is worse than a question.

use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Timestamp};

use crate::units::parse_duration;
use crate::{Error, Result};

/// The forms that are understood, for help and hints.
pub const FORMS: &str =
    "\"2026-11-21 10:00:00\" (local time), \"2026-11-21T10:00:00Z\" or \"10 minutes ago\"";

/// Parses a moment. `now` and `zone` are the ones of the person who asks.
///
/// # Errors
/// Usage, for what is no moment or could be two.
pub fn parse(text: &str, now: Timestamp, zone: &TimeZone) -> Result<Timestamp> {
    let trimmed = text.trim();
    if trimmed == "now" {
        return Ok(now);
    }
    if let Some(length) = trimmed.strip_suffix("ago") {
        return ago(text, length.trim(), now);
    }
    // A date alone is a day, hours alone are any day's.
    if !trimmed.contains(':') {
        let hint = match trimmed.parse::<jiff::civil::Date>() {
            Ok(date) => format!("say the time of day too, such as \"{date} 10:00:00\""),
            Err(_) => format!("write it as {FORMS}"),
        };
        return Err(Error::usage(format!("{text:?} is no exact moment"), hint));
    }
    if let Ok(exact) = trimmed.parse::<Timestamp>() {
        return Ok(exact);
    }
    let Ok(local) = trimmed.parse::<DateTime>() else {
        let hint = match trimmed.parse::<jiff::civil::Time>() {
            Ok(time) => {
                let today = now.to_zoned(zone.clone()).date();
                format!("say the day too, such as \"{today} {time}\"")
            }
            Err(_) => format!("write it as {FORMS}"),
        };
        return Err(Error::usage(format!("{text:?} is no exact moment"), hint));
    };
    let ambiguous = zone.to_ambiguous_zoned(local);
    let name = zone.iana_name().unwrap_or("the local time zone").to_owned();
    match ambiguous.offset() {
        AmbiguousOffset::Unambiguous { .. } => {
            ambiguous.unambiguous().map(|zoned| zoned.timestamp()).map_err(|_| {
                Error::usage(format!("{text:?} is out of range"), format!("write it as {FORMS}"))
            })
        }
        AmbiguousOffset::Fold { before, after } => Err(Error::usage(
            format!("{text:?} happened twice in {name}, because the clocks went back"),
            format!("say which one: {local}{before} or {local}{after}"),
        )),
        AmbiguousOffset::Gap { before, after } => Err(Error::usage(
            format!("{text:?} never was in {name}, because the clocks went forward"),
            format!("say an offset with it: {local}{before} or {local}{after}"),
        )),
    }
}

fn ago(text: &str, length: &str, now: Timestamp) -> Result<Timestamp> {
    let refused = |why: String| {
        Error::usage(
            format!("{text:?} is no exact moment: {why}"),
            "say it in seconds, minutes, hours, days or weeks, such as \"10 minutes ago\"",
        )
    };
    let length = length
        .strip_prefix("an ")
        .or_else(|| length.strip_prefix("a "))
        .map_or_else(|| length.to_owned(), |unit| format!("1 {unit}"));
    let duration = parse_duration(&length).map_err(refused)?;
    let duration = SignedDuration::try_from(duration).map_err(|e| refused(e.to_string()))?;
    now.checked_sub(duration).map_err(|_| refused("it is too long ago".into()))
}

/// A moment in the local time of the reader, to the second: "2026-11-21 10:00:00".
pub fn local(moment: Timestamp, zone: &TimeZone) -> String {
    moment.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn berlin() -> TimeZone {
        // Without a zone database: the European rule, spelled out.
        TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap()
    }

    fn now() -> Timestamp {
        "2026-11-21T12:00:00Z".parse().unwrap()
    }

    fn parsed(text: &str) -> String {
        match parse(text, now(), &berlin()) {
            Ok(moment) => moment.to_string(),
            Err(error) => format!("{error} / {}", error.hint().unwrap_or("")),
        }
    }

    #[test]
    fn exact_moments_parse() {
        assert_eq!(parsed("2026-11-21T10:00:00Z"), "2026-11-21T10:00:00Z");
        assert_eq!(parsed("2026-11-21T10:00:00.25+02:00"), "2026-11-21T08:00:00.25Z");
        // As PostgreSQL prints them.
        assert_eq!(parsed("2026-11-21 10:00:00.123456+00"), "2026-11-21T10:00:00.123456Z");
    }

    #[test]
    fn local_moments_parse() {
        assert_eq!(parsed("2026-11-21 10:00:00"), "2026-11-21T09:00:00Z");
        assert_eq!(parsed("2026-07-01 10:00"), "2026-07-01T08:00:00Z");
        assert_eq!(parsed("2026-07-01T10:00:00"), "2026-07-01T08:00:00Z");
    }

    #[test]
    fn moments_so_long_ago_parse() {
        assert_eq!(parsed("10 minutes ago"), "2026-11-21T11:50:00Z");
        assert_eq!(parsed("1h30m ago"), "2026-11-21T10:30:00Z");
        assert_eq!(parsed("an hour ago"), "2026-11-21T11:00:00Z");
        assert_eq!(parsed("2 weeks ago"), "2026-11-07T12:00:00Z");
    }

    #[test]
    fn what_could_be_two_moments_is_refused() {
        assert_eq!(
            parsed("2026-10-25 02:30:00"),
            "\"2026-10-25 02:30:00\" happened twice in the local time zone, because the clocks \
             went back / say which one: 2026-10-25T02:30:00+02 or 2026-10-25T02:30:00+01"
        );
        assert!(parsed("2026-03-29 02:30:00").contains("never was"));
        assert_eq!(
            parsed("2026-11-21"),
            "\"2026-11-21\" is no exact moment / say the time of day too, such as \
             \"2026-11-21 10:00:00\""
        );
        assert!(parsed("10:30").contains("say the day too, such as \"2026-11-21 10:30:00\""));
        assert!(parsed("11/12/2026 10:00").contains("no exact moment"));
        assert!(parsed("yesterday").contains("no exact moment"));
        assert!(parsed("1 month ago").contains("\"month\" is no unit of time"));
        assert!(parsed("5 ago").contains("has no unit"));
    }

    proptest! {
        #[test]
        fn nothing_a_person_types_panics(text in "\\PC{0,32}") {
            let _ = parse(&text, now(), &berlin());
        }

        #[test]
        fn what_is_shown_parses_back(seconds in 0_i64..4_000_000_000) {
            let moment = Timestamp::from_second(seconds).unwrap();
            let shown = local(moment, &TimeZone::UTC);
            prop_assert_eq!(parse(&shown, now(), &TimeZone::UTC).unwrap(), moment);
        }
    }
}
