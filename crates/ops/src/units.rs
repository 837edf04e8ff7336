//! Sizes and lengths of time, as people write and read them.

use std::time::Duration;

/// Parses "90s", "5m", "1h30m", "7d", "2w", "250ms".
///
/// A number without a unit is refused: "5" is not five of anything.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    const UNITS: [(&[&str], f64); 6] = [
        (&["ms", "msec", "millisecond", "milliseconds"], 0.001),
        (&["s", "sec", "secs", "second", "seconds"], 1.0),
        (&["m", "min", "mins", "minute", "minutes"], 60.0),
        (&["h", "hr", "hrs", "hour", "hours"], 3600.0),
        (&["d", "day", "days"], 86_400.0),
        (&["w", "week", "weeks"], 604_800.0),
    ];
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err("an empty text is no length of time".into());
    }
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        let after = after.trim_start();
        let letters = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        let number: f64 = number.parse().map_err(|_| format!("{text:?} is no length of time"))?;
        if unit.is_empty() {
            return Err(format!("{text:?} has no unit"));
        }
        let lower = unit.to_ascii_lowercase();
        let scale = UNITS
            .iter()
            .find(|(names, _)| names.contains(&lower.as_str()))
            .map(|(_, scale)| *scale)
            .ok_or_else(|| format!("{unit:?} is no unit of time"))?;
        seconds += number * scale;
        rest = after.trim_start();
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| format!("{text:?} is too long a time"))
}

/// Parses "500", "64 KiB", "1.5G", "10MB". Without an `i` and with a `B` the unit is decimal; a
/// single letter is binary. The result is bytes.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    let number: f64 = number.parse().map_err(|_| format!("{text:?} is no size"))?;
    let unit = unit.trim().to_ascii_lowercase();
    let scale: f64 = match unit.as_str() {
        "" | "b" => 1.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        "k" | "kib" => 1024.0,
        "m" | "mib" => 1024.0 * 1024.0,
        "g" | "gib" => 1024.0 * 1024.0 * 1024.0,
        "t" | "tib" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return Err(format!("{unit:?} is no unit of size")),
    };
    let bytes = number * scale;
    if bytes < 9.0e18 { Ok(bytes.round() as u64) } else { Err(format!("{text:?} is too large")) }
}

/// "0 B", "812 B", "1.5 KiB", "24.0 MiB", "3.1 GiB".
pub fn format_size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    for (index, unit) in UNITS.iter().enumerate() {
        // 1023.95 would be printed as 1024.0: the next unit says it better.
        if value < 1023.95 || index == UNITS.len() - 1 {
            return format!("{value:.1} {unit}");
        }
        value /= 1024.0;
    }
    format!("{bytes} B")
}

/// "85 ms", "4.2 s", "3m 05s", "2h 14m", "3d 4h": two figures that matter, no more.
pub fn format_duration(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 0.9995 {
        return format!("{} ms", (seconds * 1000.0).round());
    }
    if seconds < 9.95 {
        return format!("{seconds:.1} s");
    }
    if seconds < 59.5 {
        return format!("{seconds:.0} s");
    }
    let whole = seconds.round() as u64;
    let (days, hours, minutes) = (whole / 86_400, whole % 86_400 / 3600, whole % 3600 / 60);
    if days > 0 {
        format!("{days}d {hours}h")
    } else if hours > 0 {
        format!("{hours}h {minutes:02}m")
    } else {
        format!("{minutes}m {:02}s", whole % 60)
    }
}

/// A length of time in the words a configuration uses: "5m", "1h 30m", "7d", "0". Exact to the
/// second, so that it parses back to the same.
pub fn format_setting(duration: Duration) -> String {
    let mut rest = duration.as_secs();
    let mut parts = Vec::new();
    for (unit, scale) in [("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)] {
        if rest >= scale {
            parts.push(format!("{}{unit}", rest / scale));
            rest %= scale;
        }
    }
    let millis = duration.subsec_millis();
    if millis > 0 {
        parts.push(format!("{millis}ms"));
    }
    if parts.is_empty() { "0".into() } else { parts.join(" ") }
}

/// How long ago: "just now", "40 s ago", "12 min ago", "5 h ago", "3 days ago".
pub fn format_age(age: Duration) -> String {
    let seconds = age.as_secs();
    match seconds {
        0..=4 => "just now".into(),
        5..=89 => format!("{seconds} s ago"),
        90..=5399 => format!("{} min ago", (seconds + 30) / 60),
        5400..=172_799 => format!("{} h ago", (seconds + 1800) / 3600),
        _ => format!("{} days ago", (seconds + 43_200) / 86_400),
    }
}

/// "1 file", "2,000 files".
pub fn count(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", group(number), if number == 1 { one } else { many })
}

/// Digits in groups of three.
pub fn group(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lengths_of_time_parse() {
        let seconds = |text| parse_duration(text).map(|d| d.as_secs_f64());
        assert_eq!(seconds("5m"), Ok(300.0));
        assert_eq!(seconds("1h30m"), Ok(5400.0));
        assert_eq!(seconds("1h 30m"), Ok(5400.0));
        assert_eq!(seconds("7 days"), Ok(604_800.0));
        assert_eq!(seconds("250ms"), Ok(0.25));
        assert_eq!(seconds("0"), Ok(0.0));
    }

    #[test]
    fn a_number_without_a_unit_is_refused() {
        assert_eq!(parse_duration("5"), Err("\"5\" has no unit".into()));
        assert!(parse_duration("").is_err());
        assert!(parse_duration("m").is_err());
        assert!(parse_duration("-5m").is_err());
        assert!(parse_duration("5 parsecs").is_err());
        assert!(parse_duration("99999999999999999999999w").is_err());
    }

    #[test]
    fn sizes_parse() {
        assert_eq!(parse_size("500"), Ok(500));
        assert_eq!(parse_size("64 KiB"), Ok(65_536));
        assert_eq!(parse_size("1.5G"), Ok(1_610_612_736));
        assert_eq!(parse_size("10MB"), Ok(10_000_000));
        assert!(parse_size("ten").is_err());
        assert!(parse_size("10 XB").is_err());
        assert!(parse_size("99999999999T").is_err());
    }

    #[test]
    fn figures_read_well() {
        assert_eq!(format_size(0), "0 B");
        assert_eq!(format_size(1023), "1023 B");
        assert_eq!(format_size(1536), "1.5 KiB");
        assert_eq!(format_size(1024 * 1024 - 1), "1.0 MiB");
        assert_eq!(format_size(u64::MAX), "16.0 EiB");
        assert_eq!(format_duration(Duration::from_millis(85)), "85 ms");
        assert_eq!(format_duration(Duration::from_millis(4230)), "4.2 s");
        assert_eq!(format_duration(Duration::from_secs(185)), "3m 05s");
        assert_eq!(format_duration(Duration::from_secs(8040)), "2h 14m");
        assert_eq!(format_duration(Duration::from_secs(4 * 3600 + 3 * 86_400)), "3d 4h");
        assert_eq!(format_age(Duration::from_secs(720)), "12 min ago");
        assert_eq!(count(1, "file", "files"), "1 file");
        assert_eq!(count(1_234_567, "file", "files"), "1,234,567 files");
    }

    proptest! {
        #[test]
        fn nothing_a_person_types_panics(text in "\\PC{0,24}") {
            let _ = parse_duration(&text);
            let _ = parse_size(&text);
        }

        #[test]
        fn what_is_printed_as_a_setting_parses_back(seconds in 0_u64..4_000_000_000) {
            let duration = Duration::from_secs(seconds);
            prop_assert_eq!(parse_duration(&format_setting(duration)), Ok(duration));
        }
    }
}
